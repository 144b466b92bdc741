"""Whether what is restored is what was computed, on the stand-in or a model of yours.

    python bench/kv_exact.py [--quick] [--model PATH]

Runs prompts in one process, restarts the KV cache service, runs them again in another, and compares
logits, tokens and every array of the state bit for bit: at the lengths where blocks, chunks and
checkpoints begin and end, at 20,000 tokens, and on 200 random prompts. Exits with 1 if one differs
or was not restored.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from ds4_daemon import standin

sys.path.insert(0, str(Path(__file__).parents[1]))  # run as a file, it finds its siblings

from bench.kv_process import SERVICE_FLAGS, Process

LENGTHS = (129, 511, 4095, 4096, 4097, 20_000)
RANDOM_PROMPTS = 200


def prompts(quick: bool) -> dict[str, np.ndarray]:
    random = np.random.default_rng(3)
    found = {f"length {n}": random.integers(3, 8000, n) for n in LENGTHS[: -1 if quick else None]}
    for i in range(10 if quick else RANDOM_PROMPTS):
        found[f"random {i:03}"] = random.integers(3, 8000, random.integers(129, 1200))
    return {name: ids.astype(np.int32) for name, ids in found.items()}


def run(home: Path, model: Path, asked: Path, out: Path) -> dict[str, np.ndarray]:
    """Every prompt in a process of its own, which leaves nothing in memory."""
    command = [sys.executable, "-m", "tests.wire.kv_probe"]
    paths = [str(path) for path in (home, model, asked, out)]
    # One thread for products: what is compared does not depend on it, and it suits a busy machine.
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1"}
    subprocess.run([*command, *paths], check=True, cwd=Path(__file__).parents[1], env=environment)
    with np.load(out) as loaded:
        return dict(loaded)


def differences(name: str, cold: dict[str, np.ndarray], again: dict[str, np.ndarray]) -> list[str]:
    """The arrays of a prompt that are not equal."""
    wrong = []
    for key in (key for key in cold if key.startswith(f"{name}/")):
        ours, theirs = cold[key], again[key]
        if key.endswith(("/restored", "/miss")):
            continue
        if key.endswith("/logits"):  # of the cold run, those from the checkpoint on
            ours = ours[-len(theirs) :]
        if not np.array_equal(ours, theirs):
            wrong.append(key)
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer and shorter prompts")
    parser.add_argument("--model", type=Path, help="another model than the stand-in")
    arguments = parser.parse_args()
    asked = prompts(arguments.quick)
    with tempfile.TemporaryDirectory(prefix="ds4-", dir="/tmp") as name:
        home = Path(name)
        model = arguments.model or standin.make(home / "stand-in").gguf
        np.savez(home / "prompts.npz", allow_pickle=False, **asked)
        flags = ("--min-tokens", "128", *SERVICE_FLAGS)
        with Process("ds4_kvcache.main", home, *flags):
            cold = run(home, model, home / "prompts.npz", home / "cold.npz")
        with Process("ds4_kvcache.main", home, *flags) as service:
            again = run(home, model, home / "prompts.npz", home / "again.npz")
            hits = service.stats().total.hits
    wrong = [key for one in asked for key in differences(one, cold, again)]
    missed = [
        one for one, ids in asked.items() if again[f"{one}/restored"] != (len(ids) - 1) // 128 * 128
    ]
    print(f"{len(asked)} prompts, {hits} hits counted by the service")
    print(f"not equal: {wrong or 'none'}; not restored: {missed or 'none'}")
    return 1 if wrong or missed or hits < len(asked) else 0


if __name__ == "__main__":
    sys.exit(main())
