"""The feed-forward of a layer: a router, its chosen experts, and one that always runs.

Model-spec §2.6.  The first layers choose experts by token id from a table, the others by score
plus a bias that only selects; weights come from the unbiased scores.
"""

from collections.abc import Generator

from ds4_daemon.kernels.ops import Array, Ops
from ds4_daemon.model.config import ModelConfig
from ds4_daemon.model.weights import Weights


class MixtureOfExperts:
    """`layers.N.ffn`."""

    def __init__(self, config: ModelConfig, weights: Weights, ops: Ops, layer: int) -> None:
        prefix = f"layers.{layer}.ffn"
        limit = config.swiglu_limit
        self._config = config
        self._ops = ops
        self._gate = weights.linear(f"{prefix}.gate.weight")
        by_hash = layer < config.num_hash_layers
        self._table = weights.table(f"{prefix}.gate.tid2eid") if by_hash else None
        self._bias = None if by_hash else weights.vector(f"{prefix}.gate.bias")
        self._experts = weights.experts(layer, limit)
        shared_limit = limit if config.clamp_shared_expert else float("inf")
        self._shared = weights.gated(f"{prefix}.shared_experts", shared_limit)

    def units(self, n: int) -> int:
        """Slices that `run` has for `n` tokens of each sequence."""
        return self._experts.parts(n)

    def run(self, x: Array, tokens: Array) -> Generator[Array, None, Array]:
        """x `[B, n, D]`, token ids `[B, n]` → `[B, n, D]`.

        Yields between two of its slices, `units` less one times, what the first made.
        """
        ids, chosen_weights = self.route(x, tokens)
        parts = self._experts.parts(x.shape[1])
        y = self._experts(x, ids, chosen_weights, 0, None)
        for part in range(1, parts):
            yield y
            y = self._experts(x, ids, chosen_weights, part, y)
        return y + self._shared(x)

    def route(self, x: Array, tokens: Array) -> tuple[Array, Array]:
        """The experts of each token and their weights, `[B, n, K]` each."""
        c, ops = self._config, self._ops
        scores = ops.router_scores(ops.f32(self._gate(ops.f32(x))))
        if self._table is not None:
            ids = self._table[tokens]
        else:
            ids = ops.top_k(scores + self._bias, c.num_experts_per_tok)
        s = ops.xp.take_along_axis(scores, ids, axis=-1)
        return ids, s * (c.routed_scaling_factor / s.sum(-1, keepdims=True))
