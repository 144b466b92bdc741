"""What other ways to quantize the routed experts would cost, in bits a byte of held-out text.

    python models/nano/variants.py PARENT --data CORPUS [--tokens 65536] [--seed 1]
                                   [--only WORD] [--library libggml-base.so]

Compares the parent, the shipped file (the projection's codes) and what ggml's own quantizer makes:
IQ2_XXS with Q2_K, with and without an importance matrix, and Q2_K, Q4_K and Q8_0 throughout. All
but the experts is stored as shipped. Prints Markdown. ggml is built where no library is named
(build_ggml.py); `--tokens` of the last phase's text, drawn by `--seed`, make the importance matrix.
Takes about two minutes of one core for each variant.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from ds4_daemon.model.tensor import Bytes
from ds4_daemon.standin.gguf_writer import storage
from gguf import GGMLQuantizationType as Type

# As a script, this file finds its neighbours whatever the working folder.
sys.path.insert(0, str(Path(__file__).parents[2]))

from models.nano import build_ggml, checkpoint, feed, heldout, quantize
from models.nano.export import trainee_of
from models.nano.ggml import Floats, Quantizer
from models.nano.importance import Importance, measure
from models.nano.model import Trainee

_ROW_TOKENS = 1024
_ROWS = 4
_THROUGHOUT = (Type.Q2_K, Type.Q4_K, Type.Q8_0)


def by_ggml(ggml: Quantizer, importance: list[Importance] | None) -> quantize.Experts:
    """ggml's own search, with a weight for each column of each expert, or one for all."""

    def blocks(layer: int, part: str, stack: Floats, kind: Type) -> Bytes:
        weights = np.ones(stack.shape[::2], np.float32)
        if importance is not None:
            measured = importance[layer]
            weights = measured.down if part == "w2" else measured.gate_up
            floor = np.float32(1e-8) * weights.max(axis=1, keepdims=True)
            weights = np.maximum(weights, floor)  # a column of no weight would be lost
        each = zip(stack, weights, strict=True)
        return np.stack([ggml.blocks(values, kind, weight) for values, weight in each])

    return blocks


def calibrated(parent: Path, source: feed.Source, tokens: int, seed: int) -> list[Importance]:
    """Importance over the last phase's text."""
    stream = source("C", _ROW_TOKENS, _ROWS, seed)
    rows = []
    for _ in range(max(1, tokens // (_ROWS * _ROW_TOKENS))):
        ids = next(stream)[0][:, :-1]
        rows.append(torch.from_numpy(ids.astype(np.int64)))
    getattr(stream, "close", lambda: None)()
    return measure(trainee_of(parent), rows)


def fill(trainee: Trainee, path: Path) -> None:
    """Give the trainer's network the weights of any model file, dequantized."""
    trainee.net.load_state_dict(checkpoint.state_of(path, trainee.config))


def throughout(kind: Type) -> Callable[[str, tuple[int, ...]], Type]:
    """`storage`, but for all experts `kind`."""
    return lambda name, shape: kind if ".ffn.experts." in name else storage(name, shape)


def variants(
    parent: Path, ggml: Quantizer, importance: Callable[[], list[Importance]], only: str
) -> Iterator[tuple[str, Path]]:
    """Name and file of every variant whose name has `only` in it; a file lasts until the next."""
    plain = by_ggml(ggml, None)
    makers: dict[str, Callable[[Path], None]] = {
        "shipped: projection's codes": lambda out: quantize.write(parent, out),
        "IQ2_XXS + Q2_K, ggml": lambda out: quantize.write(parent, out, plain),
        "IQ2_XXS + Q2_K, ggml with importance": lambda out: quantize.write(
            parent, out, by_ggml(ggml, importance())
        ),
    }
    for kind in _THROUGHOUT:
        makers[f"{kind.name}, ggml"] = lambda out, kind=kind: quantize.write(  # type: ignore[misc]
            parent, out, plain, throughout(kind)
        )
    yield from ((name, parent) for name in ["parent"] if only in name)
    with tempfile.TemporaryDirectory() as folder:
        for name, make in makers.items():
            if only in name:
                make(Path(folder) / "variant.gguf")
                yield name, Path(folder) / "variant.gguf"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("parent", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=65_536)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", default="", help="variants whose names have this in them")
    parser.add_argument("--library", type=Path)
    args = parser.parse_args()
    ggml = Quantizer(args.library or build_ggml.library(build_ggml.default_cache()))
    trainee = trainee_of(args.parent)

    def importance() -> list[Importance]:
        source = feed.of_corpus(args.data, workers=1)
        return calibrated(args.parent, source, args.tokens, args.seed)

    head = False
    for name, path in variants(args.parent, ggml, importance, args.only):
        fill(trainee, path)
        losses = heldout.losses(trainee, args.data / "heldout.jsonl")
        if not head:
            print("| experts | MB |", " | ".join(losses), "|")
            print("|---" * (len(losses) + 2) + "|")
            head = True
        size = (path / "model.safetensors" if path.is_dir() else path).stat().st_size
        bits = " | ".join(f"{loss['bits_a_byte']:.4f}" for loss in losses.values())
        print(f"| {name} | {size / 1e6:.2f} | {bits} |", flush=True)


if __name__ == "__main__":
    main()
