"""Attention of one layer: a sliding window, plus compressed entries where the layer has them.

Model-spec §2.3–2.5.  Keys are values: one head of rows, rotated, its other channels rounded to
FP8.  A query sees the last `sliding_window` rows and, jointly in one softmax with a sink, the
entries whose windows have closed: all of them (HCA) or the indexer's choice (CSA).
"""

from collections.abc import Generator, Iterator, Sequence

import numpy as np

from ds4_daemon.kernels.ops import Array, Ops
from ds4_daemon.model.compressor import Compressor
from ds4_daemon.model.config import CSA_RATIO, ModelConfig
from ds4_daemon.model.indexer import Indexer
from ds4_daemon.model.rope import inverse_frequencies
from ds4_daemon.model.state import LayerState
from ds4_daemon.model.weights import Weights

# Queries that share one set of window rows: as many as the window is long, so that at most half
# of the scores computed are masked. Fewer where their scores over all heads and entries would take
# more than 256 MB, which the full-size model reaches at 32,768 tokens.
_QUERY_BLOCK = 128
_MOST_SCORES = 64_000_000

# Fewer too where a block would take longer than a step may (`Ops.slice_macs`), but not so few that
# a matrix product has only a handful of rows.
_LEAST_QUERIES = 16


class Attention:
    """`layers.N.attn`."""

    def __init__(
        self, config: ModelConfig, weights: Weights, ops: Ops, layer: int, rounding: bool
    ) -> None:
        prefix = f"layers.{layer}.attn"
        self._config = config
        self._ops = ops
        self._rounding = rounding
        self.ratio = config.compress_ratios[layer]
        self._down = weights.linear(f"{prefix}.wq_a.weight", f"{prefix}.wkv.weight")
        self._q_norm = weights.vector(f"{prefix}.q_norm.weight")
        self._wq_b = weights.linear(f"{prefix}.wq_b.weight")
        self._kv_norm = weights.vector(f"{prefix}.kv_norm.weight")
        self._sink = weights.vector(f"{prefix}.attn_sink")
        self._wo_a = weights.grouped_linear(f"{prefix}.wo_a.weight", config.o_groups)
        self._wo_b = weights.linear(f"{prefix}.wo_b.weight")
        self._compressor: Compressor | None = None
        self._indexer: Indexer | None = None
        if not self.ratio:
            return
        inv_freq = inverse_frequencies(config, self.ratio)
        pooled = [f"{prefix}.compressor"]
        self._compressor = Compressor(
            config, weights, ops, pooled[0], self.ratio, config.head_dim, inv_freq
        )
        if self.ratio == CSA_RATIO:
            pooled.append(f"{prefix}.indexer.compressor")
            self._indexer = Indexer(config, weights, ops, f"{prefix}.indexer", inv_freq, rounding)
        names = [f"{p}.{w}.weight" for p in pooled for w in ("wkv", "wgate")]
        self._pool_rows = weights.linear(*names)

    def units(self, positions: Sequence[int], n: int) -> int:
        """Slices that `run` has for `n` tokens of each sequence: projections, pooling, blocks of
        queries."""
        if n == 1:
            return len(positions)
        blocks = sum(-(-n // self._block_tokens(position, n)) for position in positions)
        return 1 + blocks + self._pools_apart(n) * (1 + len(positions))

    def run(
        self, h: Array, states: Sequence[LayerState], positions: Sequence[int], cos_sin: Array
    ) -> Generator[Array, None, Array]:
        """h `[B, n, D]` of sequences at `positions`, whose states advance → `[B, n, D]`.

        Yields between two of its slices, `units` less one times, what the first made.
        """
        c, ops = self._config, self._ops
        batch, n = h.shape[:2]
        down = self._down(h)
        qr = ops.rms_norm(down[..., : c.q_lora_rank], self._q_norm, c.rms_norm_eps)
        q = self._wq_b(qr).reshape(batch, n, c.num_attention_heads, c.head_dim)
        q = ops.rope(ops.rms_norm(q, None, c.rms_norm_eps), cos_sin[:, :, None])
        kv = ops.rms_norm(down[..., c.q_lora_rank :], self._kv_norm, c.rms_norm_eps)
        kv = self._stored(ops.rope(kv, cos_sin))
        apart = self._pools_apart(n)
        if apart:
            yield q
        pooled = self._pool_rows(ops.f32(h)) if self.ratio else None
        if n > 1:
            yield q if pooled is None else pooled

        out: list[Array] = []
        for b, (state, position) in enumerate(zip(states, positions, strict=True)):
            if out:
                yield out[-1]
            if pooled is not None:
                self._extend(state, pooled[b], position)
                if apart:
                    yield pooled
            window = state.window.append(kv[b])
            blocks: list[Array] = []
            for span, parts in self._blocks(state, window, position, n, qr[b], h[b], cos_sin[b]):
                if blocks:
                    yield blocks[-1]
                blocks.append(ops.attend(q[b, span], parts, self._sink, c.head_dim**-0.5))
            out.append(ops.xp.concatenate(blocks) if len(blocks) > 1 else blocks[0])
            state.window.drop_first(max(0, len(state.window) - (c.sliding_window - 1)))
        o = ops.rope(ops.xp.stack(out), cos_sin[:, :, None], inverse=True)
        z = self._wo_a(o.reshape(batch, n, c.o_groups, -1))
        return self._wo_b(z.reshape(batch, n, -1))

    def _pools_apart(self, n: int) -> bool:
        """Whether pooling takes so long that its projection and its rest are slices alone."""
        c = self._config
        columns = 4 * (c.head_dim + c.index_head_dim) if self._indexer else 2 * c.head_dim
        macs = n * c.hidden_size * columns if self.ratio else 0
        return n > 1 and macs > self._ops.slice_macs / 4

    def _extend(self, state: LayerState, rows: Array, position: int) -> None:
        """Pool the projected rows of this layer's compressor and its indexer's."""
        assert self._compressor is not None and state.compressor is not None
        width = rows.shape[-1]
        if self._indexer is not None:
            assert state.indexer is not None
            width -= 4 * self._config.index_head_dim
            self._indexer.extend(state.indexer, rows[:, width:], position)
        entries = self._compressor.extend(state.compressor, rows[:, :width], position)
        if entries is not None:
            # What attends to them takes them in this type, and V4 keeps their rotated channels so.
            state.compressor.entries.append(self._ops.activation(self._stored(entries)))

    def _blocks(
        self,
        state: LayerState,
        window: Array,
        position: int,
        n: int,
        qr: Array,
        h: Array,
        cos_sin: Array,
    ) -> Iterator[tuple[slice, list[tuple[Array, Array | None]]]]:
        """Blocks of queries, each with the rows it may see and the mask over them."""
        c = self._config
        first = window.shape[0] - n  # where the chunk begins in the window's rows
        step = self._block_tokens(position, n)
        for start in range(0, n, step):
            stop = min(start + step, n)
            low = max(0, first + start - c.sliding_window + 1)
            high = first + stop
            parts = [(window[low:high], self._window_mask(first, start, stop, low, high))]
            visible = (position + stop) // self.ratio if self.ratio else 0
            if visible:
                assert state.compressor is not None
                rows = state.compressor.entries.view()[:visible]
                mask = self._closed_mask(position + start, position + stop, visible)
                if self._indexer is not None and visible > c.index_topk:
                    assert state.indexer is not None
                    keys = state.indexer.entries.view()[:visible]
                    span = slice(start, stop)
                    scores = self._indexer.scores(qr[span], h[span], cos_sin[span], keys)
                    parts.append(self._selected(rows, scores, mask))
                else:
                    parts.append((rows, mask))
            yield slice(start, stop), parts

    def _block_tokens(self, position: int, n: int) -> int:
        """Queries of a block; of the sequence's position alone, as everything that moves bits."""
        if n == 1:
            return 1
        c = self._config
        entries = (position + n) // self.ratio if self.ratio else 0
        heads = max(c.num_attention_heads, c.index_n_heads)
        step = _QUERY_BLOCK
        macs = 2 * c.num_attention_heads * c.head_dim * (entries + 2 * _QUERY_BLOCK)
        while step > _LEAST_QUERIES and step * macs > 1.5 * self._ops.slice_macs:
            step //= 2
        return max(1, min(step, _MOST_SCORES // (heads * (entries + 1))))

    def _window_mask(self, first: int, start: int, stop: int, low: int, high: int) -> Array | None:
        """`[stop - start, high - low]`: rows not after the query nor a window before it."""
        if stop - start == 1:
            return None
        query = np.arange(first + start, first + stop)[:, None]
        row = np.arange(low, high)
        return self._ops.asarray((row <= query) & (row > query - self._config.sliding_window))

    def _closed_mask(self, start: int, stop: int, visible: int) -> Array | None:
        """`[stop - start, visible]`: entries whose last token is not after the query."""
        if stop - start == 1:
            return None
        closed = (np.arange(start, stop) + 1) // self.ratio
        if closed[0] == visible:
            return None
        return self._ops.asarray(np.arange(visible) < closed[:, None])

    def _selected(
        self, entries: Array, scores: Array, closed: Array | None
    ) -> tuple[Array, Array | None]:
        """The indexer's best entries: gathered for one query, masked for several."""
        ops, k = self._ops, self._config.index_topk
        if scores.shape[0] == 1:
            return entries[ops.top_k(scores[0], k)], None
        if closed is None:
            return entries, ops.top_k_mask(scores, k)
        scores = ops.xp.where(closed, scores, -np.inf)
        return entries, ops.top_k_mask(scores, k) & closed

    def _stored(self, rows: Array) -> Array:
        """Rows as the cache keeps them: FP8-rounded but for the rotated channels."""
        if not self._rounding:
            return rows
        rotated = self._config.qk_rope_head_dim
        plain = self._ops.fp8_round(rows[..., :-rotated])
        return self._ops.xp.concatenate([plain, rows[..., -rotated:]], axis=-1)
