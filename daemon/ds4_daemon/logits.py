"""`python -m ds4_daemon.logits`: the logits of every position, for checking the engine.

Runs any model folder or GGUF file over given token ids, in chunks of given lengths, and writes
float32 `[tokens, vocab]`.  Needs no tokenizer and no daemon.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from ds4_daemon.errors import DaemonError, RequestError
from ds4_daemon.model.load import DEVICES, DTYPES, load_network
from ds4_daemon.model.network import Network, Segment, Want


def compute(network: Network, ids: np.ndarray, chunks: Sequence[int]) -> np.ndarray:
    """Logits `[tokens, vocab]` of one sequence fed in chunks; the last length repeats."""
    state = network.new_state()
    out = []
    for piece in _pieces(ids, chunks):
        (logits,) = network.forward([Segment(state, piece, Want.ALL)])
        assert logits is not None
        out.append(logits)
    return np.concatenate(out)


def _pieces(ids: np.ndarray, chunks: Sequence[int]) -> Iterator[np.ndarray]:
    at, i = 0, 0
    while at < len(ids):
        length = chunks[min(i, len(chunks) - 1)] if chunks else len(ids)
        yield ids[at : at + length]
        at, i = at + length, i + 1


def _chunk_lengths(text: str) -> list[int]:
    parts = text.split(",")
    if not all(part.isdecimal() and int(part) for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is no list of lengths, such as 5,37,1")
    return [int(part) for part in parts]


def _read_ids(path: Path) -> np.ndarray:
    try:
        ids = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as e:
        raise RequestError(
            "BAD_IDS", f"{path} is no readable array", "write it with numpy.save"
        ) from e
    if ids.ndim == 2 and len(ids) == 1:
        ids = ids[0]
    if ids.ndim != 1 or not len(ids) or not np.issubdtype(ids.dtype, np.integer):
        raise RequestError(
            "BAD_IDS",
            f"{path}: {ids.dtype} {ids.shape} is no list of ids",
            "save integers [tokens]",
        )
    if ids.min() < 0 or ids.max() > np.iinfo(np.int32).max:
        raise RequestError("TOKEN_OUT_OF_RANGE", f"{path}: an id is no token", "ids count from 0")
    out: np.ndarray = ids.astype(np.int32)
    return out


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m ds4_daemon.logits", description=__doc__)
    parser.add_argument("model", type=Path, help="a model folder or a .gguf file")
    parser.add_argument("--ids", type=Path, required=True, help=".npy of token ids")
    parser.add_argument("--out", type=Path, required=True, help=".npy to write")
    parser.add_argument("--chunks", type=_chunk_lengths, default=[], help="lengths, as 5,37,1")
    parser.add_argument(
        "--no-rounding", action="store_true", help="no FP8/FP4 rounding of the cache"
    )
    parser.add_argument("--device", choices=DEVICES, default="auto")
    parser.add_argument("--dtype", choices=DTYPES, default="auto", help="activation type")
    args = parser.parse_args(argv)
    try:
        network = load_network(
            args.model, device=args.device, dtype=args.dtype, rounding=not args.no_rounding
        )
        logits = compute(network, _read_ids(args.ids), args.chunks)
        with args.out.open("wb") as file:  # a name without .npy stays as it is
            np.save(file, logits)
    except OSError as e:
        print(f"{args.out}: {e.strerror}", file=sys.stderr)
        return 1
    except DaemonError as e:
        print(f"{e.reason}: {e}", file=sys.stderr)
        return 1 if isinstance(e, RequestError) else 78
    return 0


if __name__ == "__main__":
    sys.exit(main())
