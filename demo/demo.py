"""`make demo`: one daemon, and several programs that talk to its model at once.

Starts ds4-daemon in a home of its own, runs three programs side by side as separate processes,
shows their output as it arrives and what `ds4ctl status` says meanwhile, and stops the daemon.
Fails if any of it fails.
"""

import asyncio
import os
import shutil
import sys
import tempfile
import textwrap
import time
from pathlib import Path

HERE = Path(__file__).parent
BIN = Path(sys.executable).parent
LINE = 76
PROGRAMS = {
    "ds4ctl": [BIN / "ds4ctl", "run", "--raw", "--max-tokens", "120", "--seed", "1", "Once upon"],
    "one_prompt": [sys.executable, HERE / "one_prompt.py"],
    "two_agents": [sys.executable, HERE / "two_agents.py"],
}


async def show(name: str, colour: int, output: asyncio.StreamReader) -> None:
    """Print what a program writes, a line at a time with its name before it."""
    label = f"{name:>10} | "
    if sys.stdout.isatty():
        label = f"\033[3{colour}m{label}\033[0m"
    line = ""
    while data := await output.read(4096):
        *whole, line = (line + data.decode(errors="replace")).split("\n")
        for text in whole:
            for row in textwrap.wrap(text, LINE):
                print(label + row)
        while len(line) > LINE:
            at = line.rfind(" ", 0, LINE) + 1 or LINE
            print(label + line[:at])
            line = line[at:]
    if line.strip():
        print(label + line)


async def program(name: str, colour: int) -> float:
    """Run one of PROGRAMS to its end; how long it took."""
    start = time.perf_counter()
    process = await asyncio.create_subprocess_exec(
        *map(str, PROGRAMS[name]), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    assert process.stdout is not None
    await show(name, colour, process.stdout)
    if await process.wait():
        raise SystemExit(f"{name} failed")
    return time.perf_counter() - start


async def status(*arguments: str) -> str:
    process = await asyncio.create_subprocess_exec(
        str(BIN / "ds4ctl"), "status", *arguments, stdout=asyncio.subprocess.PIPE
    )
    text, _ = await process.communicate()
    if process.returncode:
        raise SystemExit("the daemon does not answer")
    return text.decode()


async def demonstrate(home: Path) -> None:
    os.environ["DS4_HOME"] = str(home)
    print(f"Starting ds4-daemon with its home in {home} ...")
    start = time.perf_counter()
    with (home / "daemon.log").open("wb") as log:
        daemon = await asyncio.create_subprocess_exec(str(BIN / "ds4-daemon"), stderr=log)
    try:
        await status("--wait", "60")
        print(f"It serves after {time.perf_counter() - start:.1f} s.\n")
        print("The model is the small one that comes with ds4: of use only in the forms of text it")
        print("was trained on. Network, formats and a prompt's way are those of DeepSeek V4.\n")
        print(f"Now {len(PROGRAMS)} programs at once, one of them with two agents:\n")
        running = [asyncio.create_task(program(name, 2 + i)) for i, name in enumerate(PROGRAMS)]
        await asyncio.sleep(1.5)
        during = await status()
        seconds = await asyncio.gather(*running)
        print("\nWhile they ran, ds4ctl status said:\n")
        print(during)
        for name, took in zip(PROGRAMS, seconds, strict=True):
            print(f"{name:>10} took {took:.1f} s")
        print(f"\nAfterwards:\n\n{await status()}")
    except BaseException:
        sys.stderr.write((home / "daemon.log").read_text())
        raise
    finally:
        if daemon.returncode is None:
            daemon.terminate()
        print(f"The daemon ended with exit code {await daemon.wait()}.")


def main() -> None:
    # Not in the user's own home: a demo must not meet a daemon that is in use. Short, because a
    # socket's path has room for about a hundred characters.
    home = Path(tempfile.mkdtemp(prefix="ds4-demo-", dir="/tmp"))
    try:
        asyncio.run(demonstrate(home))
    finally:
        shutil.rmtree(home)
    print("\nNext: .venv/bin/ds4-daemon in one terminal, .venv/bin/ds4ctl chat in others.")


if __name__ == "__main__":
    main()
