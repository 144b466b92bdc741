"""Pooling of a window of tokens into one cached entry, with a learned softmax gate.

Model-spec §2.4 and §2.5.  A ratio-4 compressor overlaps: an entry pools the first half-width of
the window before and the second half-width of its own.  Any other ratio pools its window alone.
Rows that do not fill a window wait in the state, so prompts may arrive in pieces of any size.
"""

from ds4_daemon.kernels.ops import Array, Ops
from ds4_daemon.model.config import CSA_RATIO, ModelConfig
from ds4_daemon.model.state import CompressorState
from ds4_daemon.model.weights import Weights


class Compressor:
    """`layers.N.attn.compressor` or `layers.N.attn.indexer.compressor`."""

    def __init__(
        self,
        config: ModelConfig,
        weights: Weights,
        ops: Ops,
        prefix: str,
        ratio: int,
        width: int,
        inv_freq: Array,
    ) -> None:
        self._ops = ops
        self._ratio = ratio
        self._overlaps = ratio == CSA_RATIO
        self._width = width
        self._inv_freq = inv_freq
        self._eps = config.rms_norm_eps
        self._norm = weights.vector(f"{prefix}.norm.weight")
        ape = weights.vector(f"{prefix}.ape")
        # Added to the gate half of a projected row [c ‖ gate].
        self._ape = ops.xp.concatenate([ops.xp.zeros_like(ape), ape], axis=-1)

    def extend(self, state: CompressorState, rows: Array, position: int) -> Array | None:
        """Take projected rows `[n, 2·(2·)width]` of the tokens from `position` on.

        Returns the entries that closed, `[k, width]`, normed and rotated but not yet stored,
        or None.
        """
        xp, ratio = self._ops.xp, self._ratio
        n = rows.shape[0]
        phase = position % ratio
        repeats = -(-(phase + n) // ratio)
        ape = self._ape if repeats == 1 else xp.tile(self._ape, (repeats, 1))
        waiting = state.tail.append(self._ops.f32(rows) + ape[phase : phase + n])

        closed = len(state.entries)
        before = 1 if self._overlaps and closed else 0  # the last closed window is held too
        count = waiting.shape[0] // ratio - before
        if not count:
            return None
        windows = waiting[: (before + count) * ratio].reshape(before + count, ratio, 2, -1)
        c, gate = windows[:, :, 0], windows[:, :, 1]
        if self._overlaps:
            c, gate = self._overlapped(c, gate, count)
        entries = (self._ops.softmax(gate, axis=1) * c).sum(1)
        keep = ratio if self._overlaps else 0
        state.tail.drop_first((before + count) * ratio - keep)

        entries = self._ops.rms_norm(entries, self._norm, self._eps)
        positions = [ratio * w for w in range(closed, closed + count)]
        return self._ops.rope(entries, self._ops.rope_table(positions, self._inv_freq))

    def _overlapped(self, c: Array, gate: Array, count: int) -> tuple[Array, Array]:
        """Rows each entry pools, `[count, 2·ratio, width]`: a-halves of the window before, own
        b-halves.  The first window of a sequence has none before it: gate -inf."""
        xp, width = self._ops.xp, self._width

        def pair(x: Array, missing: float) -> Array:
            a = x[:, :, :width]
            first = a.shape[0] == count  # no window is held from before
            start = xp.full((1, *a.shape[1:]), missing, dtype=a.dtype)
            a = xp.concatenate([start, a[:-1]]) if first else a[:-1]
            return xp.concatenate([a, x[-count:, :, width:]], axis=1)

        return pair(c, 0.0), pair(gate, float("-inf"))
