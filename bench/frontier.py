"""Prefill and decode speed as the context grows, in CSV; optionally beside transformers.

    python bench/frontier.py [--model PATH] [--frontiers 512,2048,8192] [--decode 64]
                             [--vs transformers] [--quick] [--json] [--out FILE]

At each frontier the tokens since the last one are prefilled (their speed is the prefill figure)
and some are decoded greedily.  With `--vs transformers` the peer computes the same ids with the
same weights, in float32, both taking turns chunk by chunk in one run, and ratios are medians of
the pairs: these figures hold where a machine's speed drifts.  Without `--model` the embedded
geometry with random weights is used.  `--json` prints one last line with the ratios.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator
from functools import partial
from itertools import chain, pairwise
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np
from ds4_daemon.model.files import ModelFiles, open_model
from ds4_daemon.model.load import load_network
from ds4_daemon.model.network import Network, Segment, Want
from ds4_daemon.standin import make as make_stand_in
from ds4_runtime.address import Home

# As a script, this file finds its neighbour whatever the working folder.
sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.machine import describe

CHUNK = 512


class Ours:
    """The engine's network on one sequence, without daemon or sampler."""

    name = "ds4"

    def __init__(self, network: Network) -> None:
        self._network = network
        self.begin()

    def begin(self) -> None:
        """Start a new sequence."""
        self._state = self._network.new_state()

    def feed(self, ids: np.ndarray) -> None:
        """Advance by `ids` and find the greedy next token."""
        (logits,) = self._network.forward([Segment(self._state, ids, Want.LAST)])
        assert logits is not None
        logits.argmax()


class Transformers:
    """The peer on the same weights, with its own cache."""

    name = "transformers"

    def __init__(self, files: ModelFiles) -> None:
        import torch
        from transformers import DynamicCache

        from bench.transformers_peer import peer_model, reader

        self._torch = torch
        self._model = peer_model(files.config, reader(files))
        self._new_cache = partial(DynamicCache, config=self._model.config)
        self.begin()

    def begin(self) -> None:
        """Start a new sequence."""
        self._cache = self._new_cache()

    def feed(self, ids: np.ndarray) -> None:
        torch = self._torch
        with torch.inference_mode():
            out = self._model(
                torch.from_numpy(ids[None].astype(np.int64)),
                past_key_values=self._cache,
                use_cache=True,
                logits_to_keep=1,
            )
        out.logits[0, -1].argmax().item()


Runner = Ours | Transformers


def seconds(runner: Runner, ids: np.ndarray) -> float:
    start = time.perf_counter()
    runner.feed(ids)
    return time.perf_counter() - start


def pieces(start: int, stop: int) -> Iterator[slice]:
    """Chunks cut at multiples of CHUNK."""
    while start < stop:
        end = min(stop, (start // CHUNK + 1) * CHUNK)
        yield slice(start, end)
        start = end


class Row(NamedTuple):
    """What one runner took at one frontier, chunk by chunk and token by token."""

    runner: str
    context: int
    prefill_tokens: int
    prefill_s: list[float]
    decode_s: list[float]

    def figures(self) -> list[object]:
        prefill = self.prefill_tokens / sum(self.prefill_s)
        decode = 1 / median(self.decode_s)
        head = [self.runner, self.context, self.prefill_tokens]
        return [*head, round(prefill, 1), round(decode, 1)]


COLUMNS = ["runner", "context", "prefill_tokens", "prefill_tok_s", "decode_tok_s"]


def measure(
    runners: list[Runner], ids: np.ndarray, frontiers: list[int], decode: int
) -> Iterator[Row]:
    """A row a frontier and runner; runners take turns on the same given ids."""
    at = 0
    for frontier in frontiers:
        rows = [Row(r.name, frontier, frontier - at, [], []) for r in runners]
        for piece in pieces(at, frontier):
            for runner, row in zip(runners, rows, strict=True):
                row.prefill_s.append(seconds(runner, ids[piece]))
        at = frontier + decode
        for i in range(frontier, at):
            for runner, row in zip(runners, rows, strict=True):
                row.decode_s.append(seconds(runner, ids[i : i + 1]))
        yield from rows


def times_faster(ours: list[list[float]], theirs: list[list[float]]) -> float:
    """Median, over steps that both took in turn, of how many times faster ds4 was."""
    pairs = zip(chain(*ours), chain(*theirs), strict=True)
    return round(median(b / a for a, b in pairs), 2)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, help="model folder or .gguf")
    parser.add_argument("--frontiers", default="512,2048,8192")
    parser.add_argument("--decode", type=int, default=64, help="tokens decoded at each frontier")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--vs", choices=["transformers"])
    parser.add_argument("--quick", action="store_true", help="two short frontiers, under 2 minutes")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--out", type=Path, help="also write the CSV here, with machine and commit")
    args = parser.parse_args()
    frontiers = sorted({int(f) for f in args.frontiers.split(",")})
    if args.quick:
        frontiers = [512, 2048]
    gap = min(b - a for a, b in pairwise([0, *frontiers]))
    if gap <= args.decode:
        parser.error(f"frontiers must lie more than --decode {args.decode} tokens apart")
    files = open_model(args.model or make_stand_in(Home.find().cache_dir / "stand-in").gguf)
    runners: list[Runner] = [Ours(load_network(files, device=args.device))]
    if args.vs:
        runners.append(Transformers(files))
    total = frontiers[-1] + args.decode
    ids = np.random.default_rng(0).integers(3, files.config.vocab_size, total).astype(np.int32)
    for runner in runners:  # first use unpacks weights and warms allocators
        runner.feed(ids[:CHUNK])
        runner.feed(ids[:1])
        runner.begin()

    lines = [",".join(COLUMNS)]
    print(lines[0])
    rows = []
    for row in measure(runners, ids, frontiers, args.decode):
        rows.append(row)
        lines.append(",".join(map(str, row.figures())))
        print(lines[-1], flush=True)
    if args.out:
        head = [f"# {line}" for line in describe(("numpy", "mlx", "torch", "transformers"))]
        args.out.write_text("\n".join([*head, *lines]) + "\n")
    if args.json:
        last: dict[str, object] = {"frontiers": frontiers}
        if args.vs:
            ours, theirs = ([r for r in rows if r.runner == runner.name] for runner in runners)
            decode = times_faster([r.decode_s for r in ours], [r.decode_s for r in theirs])
            prefill = times_faster([r.prefill_s for r in ours], [r.prefill_s for r in theirs])
            last |= {"decode_vs_transformers": decode, "prefill_vs_transformers": prefill}
        print(json.dumps(last))
    return 0


if __name__ == "__main__":
    sys.exit(main())
