"""The lightning indexer: which compressed entries a query of a CSA layer may see.

Model-spec §2.4.  Small keys, one an entry, are scored by a few dozen heads; only the best
entries are attended to.  Keys and queries are Hadamard-rotated and rounded to FP4 as the
official inference does, unless rounding is off, where the rotation would cancel.
"""

from ds4_daemon.kernels.ops import Array, Ops
from ds4_daemon.model.compressor import Compressor
from ds4_daemon.model.config import CSA_RATIO, ModelConfig
from ds4_daemon.model.state import CompressorState
from ds4_daemon.model.weights import Weights


class Indexer:
    """`layers.N.attn.indexer`."""

    def __init__(
        self,
        config: ModelConfig,
        weights: Weights,
        ops: Ops,
        prefix: str,
        inv_freq: Array,
        rounding: bool,
    ) -> None:
        self._config = config
        self._ops = ops
        self._rounding = rounding
        self._wq_b = weights.linear(f"{prefix}.wq_b.weight")
        self._weights_proj = weights.linear(f"{prefix}.weights_proj.weight")
        self._compressor = Compressor(
            config,
            weights,
            ops,
            f"{prefix}.compressor",
            CSA_RATIO,
            config.index_head_dim,
            inv_freq,
        )

    def extend(self, state: CompressorState, rows: Array, position: int) -> None:
        """Store the keys of the entries that close with these projected rows."""
        keys = self._compressor.extend(state, rows, position)
        if keys is not None:
            state.entries.append(self._stored(keys))

    def scores(self, qr: Array, h: Array, cos_sin: Array, keys: Array) -> Array:
        """Σ_h u_h · relu(q_h · key) for queries `[n]` and keys `[E, d]` → `[n, E]` float32."""
        c, ops = self._config, self._ops
        q = self._wq_b(qr).reshape(-1, c.index_n_heads, c.index_head_dim)
        q = ops.f32(self._stored(ops.rope(q, cos_sin[:, None])))
        u = ops.f32(self._weights_proj(h)) * (c.index_head_dim * c.index_n_heads) ** -0.5
        dots = ops.xp.matmul(q.reshape(-1, c.index_head_dim), ops.f32(keys).T)
        dots = ops.xp.maximum(dots, 0).reshape(-1, c.index_n_heads, keys.shape[0])
        return ops.xp.matmul(u[:, None, :], dots)[:, 0]

    def _stored(self, x: Array) -> Array:
        return self._ops.fp4_round(self._ops.hadamard(x)) if self._rounding else x
