"""The synthetic model's numbers: the stand-in's, repeated to fill a network of any size.

So that writing takes the disk's time and not the drawing's, every family of alike matrices has one
pool of blocks, drawn and encoded once, and a matrix is the pool read in a ring from a place that
its name gives. No row of a matrix is repeated: a pool has an odd number of units, rows a power of
two of them. Both layouts read the same places of the same pools, so they hold one model up to their
quantization. What is no matrix is drawn by itself. It knows no files. Called by `synthetic_model`.
"""

from collections.abc import Iterator
from hashlib import blake2b
from math import prod
from typing import Any, NamedTuple

import gguf
import numpy as np
import numpy.typing as npt
from ds4_daemon.model import layout
from ds4_daemon.model.config import ModelConfig
from ds4_daemon.model.layout import expert_name
from ds4_daemon.model.quant.blocks import dequantize_blocks
from ds4_daemon.model.tensor import Bytes, Format, scale_shape
from ds4_daemon.standin import drawing, release
from gguf import GGMLQuantizationType as Type

# A ring of 2^24 values: twice an expert's matrix, so that none meets its own beginning, and more
# units than the vocabulary has rows.
_MOST_VALUES = 2**24
# Values that stay together, whichever way they are encoded: a block of IQ2_XXS, of Q8_0.
_EXPERT_UNIT, _UNIT = 256, 32


class _Family(NamedTuple):
    """Matrices of the same spread: they share a pool, which is drawn under this name."""

    name: str
    columns: int


class _Pool(NamedTuple):
    units: int
    parts: list[Bytes]  # flat: the encoded values, and their scales if those lie apart


class Numbers:
    """Bytes of any tensor of a network in any format of the two layouts."""

    def __init__(self, config: ModelConfig, seed: int) -> None:
        self._config = config
        self._seed = seed
        self._pools: dict[tuple[_Family, Format], _Pool] = {}
        self._rows: dict[_Family, int] = {}
        for name, shape in layout.tensors(config):
            if _is_matrix(name):
                family = _family(name, shape)
                self._rows[family] = max(self._rows.get(family, 0), shape[0])

    def data(self, name: str, shape: layout.Shape, fmt: Format) -> Iterator[npt.NDArray[Any]]:
        """The tensor's bytes piece by piece, then those of its scales if they lie apart."""
        if name.endswith("tid2eid"):
            experts = self._config.n_routed_experts
            table = drawing.draw_tid2eid(name, (shape[0], shape[1]), experts, self._seed)
            yield table.astype(np.int32 if fmt is Format.I32 else np.int64)
        elif not _is_matrix(name):
            yield _encode(drawing.draw(name, shape, self._seed), fmt)[0]
        else:
            pool = self._pool(_family(name, shape), fmt)
            digest = blake2b(f"{self._seed} {name}".encode(), digest_size=8).digest()
            start = int.from_bytes(digest, "little") % pool.units
            sizes = [shape[0] * fmt.row_bytes(shape[1]), prod(scale_shape(fmt, shape) or ())]
            for part, nbytes in zip(pool.parts, sizes, strict=False):
                yield from _ring(part, start * (len(part) // pool.units), nbytes)

    def _pool(self, family: _Family, fmt: Format) -> _Pool:
        found = self._pools.get((family, fmt))
        if found is None:
            found = self._pools[family, fmt] = self._draw(family, fmt)
        return found

    def _draw(self, family: _Family, fmt: Format) -> _Pool:
        name, columns = family
        rows = -(-min(2 * self._rows[family] * columns, _MOST_VALUES) // columns)
        expert = ".ffn.experts." in name
        if expert:
            kept, blocks = drawing.draw_expert(name, (rows, columns), self._seed)
            encoded = [blocks] if fmt is kept else _encode(dequantize_blocks(kept, blocks), fmt)
        else:
            encoded = _encode(drawing.draw(name, (rows, columns), self._seed), fmt)
        units = rows * columns // (_EXPERT_UNIT if expert else _UNIT)
        odd = units - 1 + units % 2
        flat = [np.ascontiguousarray(part).view(np.uint8).reshape(units, -1) for part in encoded]
        return _Pool(odd, [part[:odd].reshape(-1) for part in flat])


def _is_matrix(name: str) -> bool:
    """Whether a tensor is large; norms, hyper-connections and the like are drawn by themselves."""
    return name.endswith(".weight") and not name.endswith("norm.weight")


def _family(name: str, shape: layout.Shape) -> _Family:
    columns = shape[1]
    if ".ffn.experts." in name:
        return _Family(expert_name(0, 0, "w2" if ".w2." in name else "w1"), columns)
    if name in ("embed.weight", "head.weight"):
        return _Family(name, columns)
    return _Family(f"matrices.{columns}.weight", columns)


def _ring(pool: Bytes, at: int, nbytes: int) -> Iterator[Bytes]:
    while nbytes:
        piece = pool[at : at + nbytes]
        yield piece
        nbytes -= len(piece)
        at = 0


def _encode(values: release.Floats, fmt: Format) -> list[npt.NDArray[Any]]:
    """Values in a format, and their scales if those lie apart."""
    match fmt:
        case Format.FP4:
            return list(release.to_fp4(values))
        case Format.FP8:
            # One scale: a ring knows no tiles. 4 bits of exponent hold these values as they are.
            exponent = int(release.exponent_under(np.abs(values).max(), release.FP8_MOST))
            scales = np.full(values.size // _UNIT, exponent + 127, np.uint8)
            return [release.e4m3_codes(np.ldexp(values, -exponent)), scales]
        case Format.BF16:
            return [release.to_bf16(values)]
        case _:
            return [gguf.quants.quantize(values, Type[fmt.label])]
