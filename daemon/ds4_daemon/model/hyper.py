"""Manifold-constrained hyper-connections: the four residual streams and how they mix.

Model-spec §2.2 and §2.7.  Before a sublayer the streams are weighed into one input; after it
the output is spread over streams that a doubly stochastic matrix (Sinkhorn) has mixed.  All of
it in float32.
"""

from typing import NamedTuple

from ds4_daemon.kernels.ops import Array, Ops
from ds4_daemon.model.config import ModelConfig
from ds4_daemon.model.weights import Linear, Weights


class Mix(NamedTuple):
    """How a sublayer's output returns: `post [B, n, m]`, `comb [B, n, m, m]`."""

    post: Array
    comb: Array


class HyperConnection:
    """The connection around one sublayer: `layers.N.hc_attn` or `layers.N.hc_ffn`."""

    def __init__(self, config: ModelConfig, weights: Weights, ops: Ops, prefix: str) -> None:
        self._config = config
        self._ops = ops
        self._fn = weights.linear(f"{prefix}_fn")
        m = config.hc_mult
        scale = weights.vector(f"{prefix}_scale")
        # One scale for each of pre (m), post (m) and comb (m²), spread over the outputs.
        parts = [ops.xp.broadcast_to(scale[i : i + 1], (k,)) for i, k in enumerate((m, m, m * m))]
        self._scale = ops.xp.concatenate(parts)
        self._base = weights.vector(f"{prefix}_base")

    def collapse(self, streams: Array) -> tuple[Array, Mix]:
        """Streams `[B, n, m, D]` → sublayer input `[B, n, D]` and how to return."""
        c, ops = self._config, self._ops
        m = c.hc_mult
        logits = _projected(streams, self._fn, ops, c.rms_norm_eps) * self._scale + self._base
        gates = ops.sigmoid(logits[..., : 2 * m])
        comb = logits[..., 2 * m :].reshape(*logits.shape[:2], m, m)
        comb = ops.sinkhorn(comb, c.hc_sinkhorn_iters, c.hc_eps)
        x = _weighed(streams, gates[..., :m] + c.hc_eps, ops)
        return x, Mix(post=2 * gates[..., m:], comb=comb)

    def expand(self, streams: Array, y: Array, mix: Mix) -> Array:
        """Sublayer output `[B, n, D]` → new streams; note that `comb` acts transposed."""
        ops = self._ops
        mixed = ops.xp.matmul(mix.comb.swapaxes(-1, -2), ops.f32(streams))
        mixed += mix.post[..., None] * ops.f32(y)[..., None, :]
        return ops.activation(mixed)


class HyperHead:
    """The last collapse, before the final norm: `hc_head`."""

    def __init__(self, config: ModelConfig, weights: Weights, ops: Ops) -> None:
        self._config = config
        self._ops = ops
        self._fn = weights.linear("hc_head_fn")
        self._scale = weights.vector("hc_head_scale")
        self._base = weights.vector("hc_head_base")

    def __call__(self, streams: Array) -> Array:
        """Streams `[B, n, m, D]` → `[B, n, D]`."""
        c, ops = self._config, self._ops
        logits = _projected(streams, self._fn, ops, c.rms_norm_eps) * self._scale + self._base
        return _weighed(streams, ops.sigmoid(logits) + c.hc_eps, ops)


def _projected(streams: Array, fn: Linear, ops: Ops, eps: float) -> Array:
    """fn · v / rms(v) for v the streams side by side."""
    v = ops.f32(streams).reshape(*streams.shape[:2], -1)
    return ops.f32(fn(ops.rms_norm(v, None, eps)))


def _weighed(streams: Array, pre: Array, ops: Ops) -> Array:
    """Σ_j pre_j · stream_j."""
    return ops.activation(ops.xp.matmul(pre[..., None, :], ops.f32(streams))[..., 0, :])
