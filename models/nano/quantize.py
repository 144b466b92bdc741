"""From an exported folder to the GGUF that ships: experts IQ2_XXS and Q2_K, the rest as published.

    python models/nano/quantize.py PARENT OUT.gguf

The routed experts are projected by the very function that training used (qat.py), and those codes
are packed (pack.py). Nothing is drawn and nothing calibrated. Takes half a minute on one core.
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt
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

from models.nano import pack

TITLE = "ds4 nano: a small test model; not DeepSeek's weights"

# A layer's stack of one part (w1, w2, w3) [experts, rows, columns] to the blocks of a type.
Experts = Callable[[int, str, npt.NDArray[np.float32], Type], Bytes]


def packed(_layer: int, _part: str, stack: npt.NDArray[np.float32], kind: Type) -> Bytes:
    """What ships: the projection's own codes."""
    return pack.expert_blocks(torch.from_numpy(stack), kind)


def write(
    parent: Path,
    out: Path,
    experts: Experts = packed,
    kind_of: Callable[[str, tuple[int, ...]], Type] = storage,
) -> None:
    """`out` from the folder `parent`; it appears whole or not at all.

    `kind_of` gives the type of a float tensor by its released name and shape.
    """
    scratch = out.with_name(f".{out.name}.new")
    with open_model(parent) as files:
        stored = _stored(files, experts, kind_of)
        write_model(scratch, files.config, parent / "tokenizer.json", TITLE, stored)
    scratch.rename(out)


def _stored(
    files: ModelFiles, experts: Experts, kind_of: Callable[[str, tuple[int, ...]], Type]
) -> Iterator[Stored]:
    stacks: dict[str, list[npt.NDArray[np.float32]]] = {}
    for name, shape in layout.tensors(files.config):
        tensor = files.tensor(name)
        if name.endswith("tid2eid"):
            yield gguf_name(name), integers(tensor).astype(np.int32), Type.I32
            continue
        kind = kind_of(name, shape)
        values = dequantize(tensor)
        if not np.isfinite(values).all():
            raise ValueError(f"{name} is not finite")
        if ".ffn.experts." not in name:
            yield gguf_name(name), gguf.quants.quantize(values, kind), kind
            continue
        stack = stacks.setdefault(gguf_name(name), [])
        stack.append(values)
        if len(stack) == files.config.n_routed_experts:
            _, layer, _, _, _, part, _ = name.split(".")
            whole = np.stack(stacks.pop(gguf_name(name)))
            yield gguf_name(name), experts(int(layer), part, whole, kind), kind


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("parent", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    write(args.parent, args.out)
    print(f"{args.out}: {args.out.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
