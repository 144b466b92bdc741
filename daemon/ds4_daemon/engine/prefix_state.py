"""A session's state in the records of the KV cache, and back: blocks, and checkpoints between them.

Entries only grow, so a block can be read off a session at any later time, as views that no later
step changes (`RowBuffer.part`); the bounded state must be taken at its boundary (`bounded`), before
the next token. `Restoring` is filled by another thread and becomes a state on the engine's. Used by
`prefix`.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from ds4_runtime.kv_keys import BLOCK_TOKENS

from ds4_daemon.kernels.numpy_ops import memory_of
from ds4_daemon.kernels.ops import RowBuffer
from ds4_daemon.kvlink.grid import Floats
from ds4_daemon.kvlink.layout import Layout
from ds4_daemon.kvlink.memory import Memory
from ds4_daemon.kvlink.pack import Pieces, places
from ds4_daemon.model.config import ModelConfig
from ds4_daemon.model.state import SessionState


class Bounded(NamedTuple):
    """What a state holds beside its entries, at a block's end `tokens`."""

    tokens: int
    windows: tuple[Floats, ...]  # one a layer, [rows, head_dim]
    tails: tuple[tuple[Floats, Floats], ...]  # of CSA layers: their compressor's, their indexer's

    @property
    def nbytes(self) -> int:
        """Bytes of it all."""
        return sum(self.held.values())

    @property
    def held(self) -> dict[int, int]:
        """As `RowBuffer.held`."""
        arrays = [*self.windows, *(array for tail in self.tails for array in tail)]
        return {id(memory): memory.nbytes for memory in map(memory_of, arrays)}


def layout_of(config: ModelConfig) -> Layout:
    """The sizes of this model's records."""
    return Layout(
        config.compress_ratios,
        config.head_dim,
        config.qk_rope_head_dim,
        config.index_head_dim,
        config.sliding_window - 1,
    )


def bounded(state: SessionState) -> Bounded:
    """The bounded state now; `state.length` must be a multiple of 128."""
    assert state.length % BLOCK_TOKENS == 0 and not state.torn

    def all_of(buffer: RowBuffer) -> Floats:
        # Copied: a view would keep a buffer of many times its size.
        return np.array(buffer.part(0, len(buffer)))

    windows = tuple(all_of(layer.window) for layer in state.layers)
    tails = tuple(
        (all_of(layer.compressor.tail), all_of(layer.indexer.tail))
        for layer in state.layers
        if layer.compressor is not None and layer.indexer is not None
    )
    return Bounded(state.length, windows, tails)


def checkpoint_pieces(taken: Bounded) -> Pieces:
    """A checkpoint as it is packed."""
    return Pieces(taken.windows, (), tuple(a for tail in taken.tails for a in tail))


def block_pieces(state: SessionState, layout: Layout, block: int) -> Pieces:
    """The entries that tokens `128 · block` and the 127 after it closed."""
    return blocks_pieces(state, layout, block, block + 1)[0]


def blocks_pieces(state: SessionState, layout: Layout, first: int, stop: int) -> list[Pieces]:
    """The same of several blocks, read off each layer once: a GPU is waited for at every look."""
    rows: list[list[Floats]] = []
    keys: list[list[Floats]] = []
    for layer in layout.compressed:
        compressor, indexer = state.layers[layer].compressor, state.layers[layer].indexer
        assert compressor is not None
        span = first * layout.entries(layer), stop * layout.entries(layer)
        rows.append(np.split(compressor.entries.part(*span), stop - first))
        if indexer is not None:
            keys.append(np.split(indexer.entries.part(*span), stop - first))
    return [
        Pieces(tuple(r[i] for r in rows), tuple(k[i] for k in keys), ())
        for i in range(stop - first)
    ]


def fork(state: SessionState, taken: Bounded, layout: Layout, new: SessionState) -> None:
    """Make `new` the state that `state` was at `taken`. Both live on; neither sees the other."""
    for layer in layout.compressed:
        count = taken.tokens // BLOCK_TOKENS * layout.entries(layer)
        source, target = state.layers[layer], new.layers[layer]
        assert source.compressor is not None and target.compressor is not None
        target.compressor.entries.take(source.compressor.entries, count)
        if source.indexer is not None and target.indexer is not None:
            target.indexer.entries.take(source.indexer.entries, count)
    _set_bounded(new, taken)


def duplicate(state: SessionState, new: SessionState) -> None:
    """Make `new` the state that `state` is now, at any length; `state` must be whole.

    Nothing is copied: all rows are the same memory until either gets new ones.
    """
    assert not state.torn
    for source, target in zip(state.layers, new.layers, strict=True):
        target.window.take(source.window, len(source.window))
        for ours, theirs in (
            (source.compressor, target.compressor),
            (source.indexer, target.indexer),
        ):
            if ours is not None and theirs is not None:
                theirs.tail.take(ours.tail, len(ours.tail))
                theirs.entries.take(ours.entries, len(ours.entries))
    new.length = state.length


def held(state: SessionState) -> dict[int, int]:
    """Bytes of each piece of memory of its arrays, by what tells pieces apart."""
    found: dict[int, int] = {}
    for layer in state.layers:
        found |= layer.window.held
        for compressor in (layer.compressor, layer.indexer):
            if compressor is not None:
                found |= compressor.tail.held | compressor.entries.held
    return found


def share(state: SessionState, other: SessionState, layout: Layout, tokens: int) -> Iterator[None]:
    """Have `state` hold the entries of its first `tokens` in the memory of `other`, where equal.

    One buffer at a time. Both must be idle; what they hold does not change.
    """
    for layer in layout.compressed:
        count = tokens // BLOCK_TOKENS * layout.entries(layer)
        mine, theirs = state.layers[layer], other.layers[layer]
        for ours, source in ((mine.compressor, theirs.compressor), (mine.indexer, theirs.indexer)):
            if ours is not None and source is not None:
                ours.entries.share(source.entries, count)
                yield


class Restoring:
    """The arrays of a state at `tokens`, with room for `room_tokens` in all, being filled."""

    def __init__(self, layout: Layout, tokens: int, room_tokens: int, memory: Memory) -> None:
        self.layout = layout
        self.tokens = tokens
        blocks = -(-max(tokens, room_tokens) // BLOCK_TOKENS)
        room = memory.take(blocks * layout.block_bytes).view(np.float32)
        at = 0

        def rows(layer: int, width: int) -> Floats:
            nonlocal at
            start, at = at, at + blocks * layout.entries(layer) * width
            return room[start:at].reshape(-1, width)

        self._rows = {layer: rows(layer, layout.head_dim) for layer in layout.compressed}
        self._keys = {layer: rows(layer, layout.index_dim) for layer in layout.indexed}
        self._checkpoint = places(layout.checkpoint(tokens), layout)

    def block_places(self, block: int, count: int) -> Pieces:
        """The entries of so many blocks from `block` on."""

        def part(layer: int, rows: Floats) -> Floats:
            entries = self.layout.entries(layer)
            found = rows[block * entries : (block + count) * entries]
            return found.reshape(count, entries, rows.shape[1])

        return Pieces(
            tuple(part(*one) for one in self._rows.items()),
            tuple(part(*one) for one in self._keys.items()),
            (),
        )

    def checkpoint_places(self) -> Pieces:
        """The bounded state at `tokens`."""
        return self._checkpoint

    def into(self, state: SessionState) -> Bounded:
        """Make a new `state` the one restored; on the engine's thread. Returns its bounded part."""
        for layer, rows in self._rows.items():
            compressor = state.layers[layer].compressor
            assert compressor is not None
            compressor.entries.adopt(rows, self.tokens // BLOCK_TOKENS * self.layout.entries(layer))
        for layer, keys in self._keys.items():
            indexer = state.layers[layer].indexer
            assert indexer is not None
            indexer.entries.adopt(keys, self.tokens // BLOCK_TOKENS * self.layout.entries(layer))
        layout, rest = self.layout, [part[0] for part in self._checkpoint.rest]
        tails = tuple(
            (
                rest[i].reshape(-1, 4 * layout.head_dim),
                rest[i + 1].reshape(-1, 4 * layout.index_dim),
            )
            for i in range(0, len(rest), 2)
        )
        windows = tuple(part[0] for part in self._checkpoint.rows)
        taken = Bounded(self.tokens, windows, tails)
        _set_bounded(state, taken)
        return taken


def _set_bounded(state: SessionState, taken: Bounded) -> None:
    for layer, window in zip(state.layers, taken.windows, strict=True):
        layer.window.adopt(window, len(window))
    overlapping = [layer for layer in state.layers if layer.indexer is not None]
    for layer, (tail, index_tail) in zip(overlapping, taken.tails, strict=True):
        assert layer.compressor is not None and layer.indexer is not None
        layer.compressor.tail.adopt(tail, len(tail))
        layer.indexer.tail.adopt(index_tail, len(index_tail))
    state.length = taken.tokens
