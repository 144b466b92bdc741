"""Decode speed of 1, 2, 4 and 8 sequences at once: the model alone, without daemon or sampler.

    python bench/decode.py [--model PATH] [--context 600,3000] [--steps 40] [--json]

Sizes take turns step by step, so that a machine whose speed drifts bends no ratio; a size's time
is the median of its steps, in CPU seconds of one BLAS thread (wall time beside it).  `times_one`
is tokens a second over those of one sequence.  Without `--model` the embedded model is used.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path
from statistics import median

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before NumPy is imported

import numpy as np
from ds4_daemon import embedded
from ds4_daemon.model.load import load_network
from ds4_daemon.model.network import Network, Segment, Want
from ds4_daemon.model.state import SessionState

SIZES = (1, 2, 4, 8)
CHUNK = 256


def prefilled(network: Network, ids: np.ndarray) -> SessionState:
    state = network.new_state()
    for at in range(0, len(ids), CHUNK):
        network.forward([Segment(state, ids[at : at + CHUNK], Want.NONE)])
    return state


def measure(network: Network, context: int, steps: int) -> list[dict[str, float]]:
    """A row a size."""
    random = np.random.default_rng(0)
    ids = random.integers(3, network.config.vocab_size, (SIZES[-1], context)).astype(np.int32)
    states = [prefilled(network, prompt) for prompt in ids]
    took: dict[int, list[tuple[float, float]]] = {size: [] for size in SIZES}
    for step in range(steps):
        for size in SIZES:
            batch = [Segment(s, ids[0, step : step + 1], Want.LAST) for s in states[:size]]
            wall_s, cpu_s = time.perf_counter(), time.process_time()
            network.forward(batch)
            took[size].append((time.process_time() - cpu_s, time.perf_counter() - wall_s))
    rows: list[dict[str, float]] = []
    for size, times in took.items():
        cpu_s, wall_s = (median(column) for column in zip(*times, strict=True))
        one_s = median(cpu for cpu, _ in took[1])
        rows.append(
            {
                "context": context,
                "sequences": size,
                "step_cpu_ms": round(cpu_s * 1e3, 2),
                "step_wall_ms": round(wall_s * 1e3, 2),
                "times_one": round(size * one_s / cpu_s, 2),
            }
        )
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, help="model folder or .gguf")
    parser.add_argument("--context", default="600,3000", help="tokens before the first step")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--json", action="store_true", help="last line: all rows")
    args = parser.parse_args()
    network = load_network(args.model or embedded.path(), device="cpu")
    rows: list[dict[str, float]] = []
    for context in map(int, args.context.split(",")):
        for row in measure(network, context, args.steps):
            if not rows:
                print(",".join(row))
            print(*row.values(), sep=",", flush=True)
            rows.append(row)
    if args.json:
        print(json.dumps(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
