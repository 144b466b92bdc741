"""`make demo`: one daemon, and several programs that talk to its model at once.

Starts ds4-daemon and ds4-kvcache in a home of their own, runs three programs side by side as
separate processes, shows their output as it arrives and what `ds4ctl status` says meanwhile. Then a
long prompt is computed, the daemon killed, and the same prompt asked again of its successor, which
finds it in the cache. Fails if any of it fails.
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
LONG = HERE.parent / "README.md"  # some thousand tokens of text
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


async def start(name: str, home: Path) -> asyncio.subprocess.Process:
    with (home / f"{name}.log").open("ab") as log:
        return await asyncio.create_subprocess_exec(str(BIN / name), stderr=log)


async def long_prompt() -> bytes:
    """Ask about a long text, and show the answer and how long its first token took."""
    question = f"Read this text:\n\n{LONG.read_text()}\n\nQuestion: Who are you?"
    process = await asyncio.create_subprocess_exec(
        str(BIN / "ds4ctl"), "run", "--temperature", "0", "--max-tokens", "24",
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    answer, told = await process.communicate(question.encode())
    if process.returncode:
        raise SystemExit("the long prompt failed")
    for line in (answer + told).decode().strip().splitlines():
        print(f"{'ds4ctl':>10} | {line}")
    return answer


async def restart(daemon: asyncio.subprocess.Process, home: Path) -> asyncio.subprocess.Process:
    """What was computed for a prompt outlives a daemon that is killed."""
    print(f"\nA prompt of {len(LONG.read_text()):,} characters, computed:\n")
    computed = await long_prompt()
    await asyncio.sleep(1)  # what was computed is on disk within a second
    daemon.kill()
    await daemon.wait()
    daemon = await start("ds4-daemon", home)
    await status("--wait", "60")
    print("\nThe daemon was killed and started again. The same prompt, from the cache:\n")
    if await long_prompt() != computed:
        raise SystemExit("the restored prompt was answered in another way")
    return daemon


async def demonstrate(home: Path) -> None:
    os.environ["DS4_HOME"] = str(home)
    print(f"Starting ds4-daemon and ds4-kvcache with their home in {home} ...")
    began_s = time.perf_counter()
    cache, daemon = await start("ds4-kvcache", home), await start("ds4-daemon", home)
    try:
        await status("--wait", "60")
        print(f"They serve after {time.perf_counter() - began_s:.1f} s.\n")
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
        daemon = await restart(daemon, home)
        print(f"\nAfterwards:\n\n{await status()}")
    except BaseException:
        for name in ("ds4-daemon", "ds4-kvcache"):
            sys.stderr.write((home / f"{name}.log").read_text())
        raise
    finally:
        for name, process in (("daemon", daemon), ("cache", cache)):
            if process.returncode is None:
                process.terminate()
            print(f"The {name} ended with exit code {await process.wait()}.")


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
