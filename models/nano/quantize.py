"""From an exported folder to the GGUF that ships: experts IQ2_XXS and Q2_K, the rest as published.

    python models/nano/quantize.py PARENT OUT.gguf [--data CORPUS] [--tokens 65536] [--seed 1]
                                   [--library libggml-base.so]

Quantizes with ggml's own code (build_ggml.py makes the library where none is named). `--data`
calibrates: the importance of every expert's inputs is measured over text of the last phase; without
it all columns count alike. Takes about two minutes on one core.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from ds4_daemon.model import layout
from ds4_daemon.model.files import ModelFiles, open_model
from ds4_daemon.model.gguf_file import gguf_name
from ds4_daemon.model.quant import dequantize, integers
from ds4_daemon.model.tensor import Bytes
from ds4_daemon.standin.gguf_writer import Stored, storage, write_model
from gguf import GGMLQuantizationType as Type

# As a script, this file finds its neighbours whatever the working folder.
sys.path.insert(0, str(Path(__file__).parents[2]))

from models.nano import build_ggml, feed
from models.nano.export import trainee_of
from models.nano.ggml import Floats, Quantizer
from models.nano.importance import Importance, measure

TITLE = "ds4 nano: a small test model; not DeepSeek's weights"
_ROW_TOKENS = 1024
_ROWS = 4


def write(
    parent: Path, out: Path, quantizer: Quantizer, importance: list[Importance] | None
) -> None:
    """`out` from the folder `parent`; it appears whole or not at all."""
    files = open_model(parent)
    scratch = out.with_name(f".{out.name}.new")
    stored = _stored(files, quantizer, importance)
    write_model(scratch, files.config, parent / "tokenizer.json", TITLE, stored)
    files.close()
    scratch.rename(out)


def _stored(
    files: ModelFiles, quantizer: Quantizer, importance: list[Importance] | None
) -> Iterator[Stored]:
    stacks: dict[str, list[Bytes]] = {}
    for name, shape in layout.tensors(files.config):
        tensor = files.tensor(name)
        if name.endswith("tid2eid"):
            yield gguf_name(name), integers(tensor).astype(np.int32), Type.I32
            continue
        kind = storage(name, shape)
        values = dequantize(tensor)
        if ".ffn.experts." in name:
            weight = _weight(name, shape[1], importance)
            stack = stacks.setdefault(gguf_name(name), [])
            stack.append(quantizer.blocks(values, kind, weight))
            if len(stack) == files.config.n_routed_experts:
                yield gguf_name(name), np.stack(stacks.pop(gguf_name(name))), kind
        elif kind == Type.F32:
            yield gguf_name(name), values, kind
        elif kind == Type.F16:
            yield gguf_name(name), values.astype(np.float16), kind
        else:
            yield gguf_name(name), quantizer.blocks(values, kind), kind


def _weight(name: str, columns: int, importance: list[Importance] | None) -> Floats:
    if importance is None:
        return np.ones(columns, np.float32)
    _, layer, _, _, expert, part, _ = name.split(".")
    measured = importance[int(layer)]
    weight: Floats = (measured.down if part == "w2" else measured.gate_up)[int(expert)]
    floor = np.float32(1e-8) * weight.max()  # a column of no weight would be lost
    out: Floats = np.maximum(weight, floor)
    return out


def calibrated(parent: Path, source: feed.Source, tokens: int, seed: int) -> list[Importance]:
    """Importance over the last phase's text."""
    trainee = trainee_of(parent)
    stream = source("C", _ROW_TOKENS, _ROWS, seed)
    rows = []
    for _ in range(max(1, tokens // (_ROWS * _ROW_TOKENS))):
        ids = next(stream)[0][:, :-1]
        rows.append(torch.from_numpy(ids.astype(np.int64)))
    getattr(stream, "close", lambda: None)()
    return measure(trainee, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("parent", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--tokens", type=int, default=65_536)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--library", type=Path)
    args = parser.parse_args()
    library = args.library or build_ggml.library(build_ggml.default_cache())
    importance = None
    if args.data:
        source = feed.of_corpus(args.data, workers=1)
        importance = calibrated(args.parent, source, args.tokens, args.seed)
    write(args.parent, args.out, Quantizer(library), importance)
    print(f"{args.out}: {args.out.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
