"""How several clients share one ds4-daemon: speed together, time to first token, fairness.

    python bench/serving.py [--quick] [--json] [--model PATH|thin] [--long-tokens N] [--only NAMES]
    python bench/serving.py --soak SECONDS [--model PATH|thin]

Everything goes through a real daemon and its socket, a KV cache beside it; each client has a name
and a connection of its own. Answers have a fixed length, prompts are drawn from a fixed seed and
never cached, except where `mixed` shares beginnings. Prints, with the machine and the commit, and
as JSON on the last line:

    speedup_8         tokens a second of 8 closed-loop clients with equal work ÷ those of one
    short_ttft_ratio  a one-line request that arrives during a long prefill of another client:
                      the slowest first token of three ÷ the time of that prefill alone
    itl_p95_ratio     inter-token p95 of 4 running streams during a long prefill ÷ without it
    prefill_stretch   that prefill's time beside the streams ÷ alone
    jain              Jain's index over clients with equal work, the lowest of two kinds of it
    mixed             a row for each number of clients with Poisson arrivals

`busy` are shares of all processors: much of `others` says that the machine was disturbed. Leaves
with 1 where a target is missed. `--only speedup,short,streams,equal,crowd,mixed` measures those.
"""

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # run as a file, it finds its siblings
# Inherited by the daemon. On two cores a second thread of BLAS waits more than it computes.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from bench import serving_measures as measures
from bench.kv_process import SERVICE_FLAGS, Process
from bench.machine import describe
from bench.serving_load import Ask, Busy, Daemon, Server, Texts, answered

SEED = 5
# name: (bound, what it is). A ratio may be no higher, or, for the first and the last, no lower.
TARGETS: dict[str, tuple[str, float]] = {
    "speedup_8": ("≥", 2.5),
    "short_ttft_ratio": ("≤", 0.10),
    "itl_p95_ratio": ("≤", 2.0),
    "prefill_stretch": ("≤", 3.0),
    "jain": ("≥", 0.95),
}
PARTS = ("speedup", "short", "streams", "equal", "crowd", "mixed")


def size_of(arguments: argparse.Namespace) -> measures.Size:
    """How much to measure."""
    quick = arguments.quick
    return measures.Size(
        repeats=1 if quick else 3,
        long_tokens=arguments.long_tokens,
        turns=1 if quick else 3,
        answer_tokens=96 if quick else 128,
        counts=(1, 4, 8) if quick else (1, 2, 4, 8, 16),
        requests=4 if quick else 16,
    )


async def measure(
    server: Server, size: measures.Size, parts: tuple[str, ...], say: Any
) -> dict[str, Any]:
    """All figures of one server."""
    texts = Texts(SEED)
    found: dict[str, Any] = {}
    await answered(server, Ask("warm", texts.draw(600), 8))  # weights are unpacked at first use
    for part, run in (
        ("speedup", measures.speedup),
        ("equal", measures.unequal_prompts),
        ("short", measures.short_in_long),
        ("streams", measures.streams_in_long),
        ("crowd", measures.crowd),
    ):
        if part in parts:
            busy = Busy(server.pid)
            figures = {
                name: round(value, 3) for name, value in (await run(server, texts, size)).items()
            }
            found |= figures
            say(f"{part:8}", figures, busy.shares())
    indexes = [found[name] for name in ("jain_equal", "jain_mixed") if name in found]
    if indexes:
        found["jain"] = min(indexes)
    if "mixed" in parts:
        began_s = time.perf_counter()
        await answered(server, Ask("warm", texts.draw(1000), 64))
        service_s = time.perf_counter() - began_s
        found["mixed"] = []
        for count in size.counts:
            row = await measures.mixed(server, texts, size, count, service_s)
            found["mixed"].append(row)
            say("mixed   ", row)
    return found


def missed(found: dict[str, Any]) -> list[str]:
    """The targets that these figures miss, as sentences."""
    wrong = []
    for name, (sign, bound) in TARGETS.items():
        value = found.get(name)
        if value is not None and (value < bound if sign == "≥" else value > bound):
            wrong.append(f"{name} is {value}, wanted {sign} {bound}")
    return wrong


async def ours(home: Path, size: measures.Size, parts: tuple[str, ...], say: Any) -> dict[str, Any]:
    """The figures of the daemon that serves `home`."""
    async with Daemon(home) as server:
        found = await measure(server, size, parts, say)
        status = await server.client("warm").status()
        return {"model": status.model.name, "steps": status.engine.totals.steps, **found}


def model_flags(model: str | None, folder: Path) -> list[str]:
    """The daemon's flags for a model: a path, `thin` for bench.thin_model, none: the embedded."""
    if model == "thin":
        from bench import thin_model

        model = str(thin_model.write(folder / "thin"))
    return ["--model", model] if model else []


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="each figure once: two minutes")
    parser.add_argument("--json", action="store_true", help="only the last line")
    parser.add_argument("--model", help="model folder or .gguf, or thin; none: the embedded one")
    parser.add_argument("--long-tokens", type=int, default=8000, metavar="N")
    parser.add_argument("--only", default=",".join(PARTS), metavar="NAMES")
    parser.add_argument("--soak", type=float, metavar="SECONDS", help="100 clients that misbehave")
    arguments = parser.parse_args()
    parts = tuple(arguments.only.split(","))
    if unknown := set(parts) - set(PARTS):
        parser.error(f"there is no {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")

    def say(*words: object) -> None:
        if not arguments.json:
            print(*words, flush=True)

    say("\n".join(describe()))
    # Short, because a socket's path has room for about a hundred characters.
    with tempfile.TemporaryDirectory(prefix="ds4-", dir="/tmp") as folder:
        flags = model_flags(arguments.model, Path(folder))
        if arguments.soak:
            from bench.serving_soak import run

            found, wrong = run(Path(folder) / "home", flags, arguments.soak, say)
        else:
            home = Path(folder) / "home"
            with (
                Process("ds4_kvcache.main", home, *SERVICE_FLAGS),
                Process("ds4_daemon.main", home, *flags) as daemon,
            ):
                found = asyncio.run(ours(daemon.home, size_of(arguments), parts, say))
            wrong = missed(found)
    for sentence in wrong:
        say("missed:", sentence)
    print(json.dumps({**found, "machine": describe(), "missed": wrong}))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
