"""What a record of the KV cache holds: which rows of which layers, and how many.

A block has the entries that 128 tokens close, layer by layer: `128 / ratio` rows of every
compressed layer and as many indexer keys of every CSA layer. A checkpoint has the bounded state at
a block's end: every layer's window, and the last closed window of the overlapping compressors,
which the next entry pools once more. No other compressor has a row waiting there
(docs/kv-format.md). Knows sizes only: `pack` turns records into bytes, `engine` fills them from a
session and back.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

from ds4_runtime.kv_keys import BLOCK_TOKENS

# As in `model.config`, which this package does not know.
_CSA_RATIO = 4


class Shape(NamedTuple):
    """Rows of each part of a record, part by part; `rest` in float32 values."""

    rows: tuple[int, ...]  # of head_dim channels
    keys: tuple[int, ...]  # of index_dim channels
    rest: tuple[int, ...]

    def float_bytes(self, head_dim: int, index_dim: int) -> int:
        """Its size with every value as float32."""
        return 4 * (sum(self.rows) * head_dim + sum(self.keys) * index_dim + sum(self.rest))


@dataclass(frozen=True, slots=True)
class Layout:
    """The sizes of a model's cached values; widths in channels, `window` in rows between steps."""

    ratios: tuple[int, ...]  # one a layer: 0 no compressor, 4 CSA, any other HCA
    head_dim: int
    rotated: int
    index_dim: int
    window: int

    @property
    def fits(self) -> bool:
        """Whether every compressor's window ends at a block's end, so that records exist."""
        return all(BLOCK_TOKENS % ratio == 0 for ratio in self.ratios if ratio)

    @property
    def compressed(self) -> tuple[int, ...]:
        """The layers that have entries."""
        return tuple(layer for layer, ratio in enumerate(self.ratios) if ratio)

    @property
    def indexed(self) -> tuple[int, ...]:
        """The layers that have indexer keys and an overlapping compressor."""
        return tuple(layer for layer, ratio in enumerate(self.ratios) if ratio == _CSA_RATIO)

    def entries(self, layer: int) -> int:
        """Entries that a block adds to a compressed layer."""
        return BLOCK_TOKENS // self.ratios[layer]

    @property
    def block(self) -> Shape:
        """The same for every block."""
        return Shape(
            tuple(self.entries(layer) for layer in self.compressed),
            tuple(self.entries(layer) for layer in self.indexed),
            (),
        )

    def checkpoint(self, tokens: int) -> Shape:
        """At `tokens`, a block's end: windows are shorter only where the prefix is."""
        held = min(self.window, tokens)
        # [c ‖ gate], two halves each: of the layer's compressor, then of its indexer's.
        tails = tuple(
            _CSA_RATIO * 4 * width
            for _ in self.indexed
            for width in (self.head_dim, self.index_dim)
        )
        return Shape((held,) * len(self.ratios), (), tails)

    @property
    def block_bytes(self) -> int:
        """A block as float32: what a store is told of its size."""
        return self.block.float_bytes(self.head_dim, self.index_dim)

    def packed_bytes(self, shape: Shape) -> int:
        """About what a record takes once it is packed: FP8 and FP4 codes with their scales."""
        row = self.head_dim - self.rotated + math.ceil(self.head_dim / 64) + 4 * self.rotated
        key = self.index_dim // 2 + math.ceil(self.index_dim / 32)
        return sum(shape.rows) * row + sum(shape.keys) * key + 4 * sum(shape.rest)
