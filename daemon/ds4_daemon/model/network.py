"""DeepSeek V4 from token ids to logits, over any backend.

Owns the order of the layers and the batch; knows no file, no client and no sampling.  The
engine calls `forward` with pieces of sequences: prompts in chunks of any size, single tokens,
or both.  Model-spec §2; checked against transformers in tests/model.
"""

from collections.abc import Sequence
from enum import Enum
from typing import NamedTuple

import numpy as np

from ds4_daemon.errors import RequestError
from ds4_daemon.kernels.ops import Array, Ops
from ds4_daemon.model.attention import Attention
from ds4_daemon.model.config import ModelConfig
from ds4_daemon.model.hyper import HyperConnection, HyperHead
from ds4_daemon.model.moe import MixtureOfExperts
from ds4_daemon.model.rope import inverse_frequencies
from ds4_daemon.model.state import SessionState
from ds4_daemon.model.weights import Weights


class Want(Enum):
    """Which positions of a segment need logits."""

    NONE = "none"
    LAST = "last"
    ALL = "all"


class Segment(NamedTuple):
    """The next tokens `ids [n]` (int32, n ≥ 1) of the sequence whose state this is."""

    state: SessionState
    ids: np.ndarray
    logits: Want


class Layer:
    """Attention and feed-forward, each inside its hyper-connection: `layers.N`."""

    def __init__(
        self, config: ModelConfig, weights: Weights, ops: Ops, layer: int, rounding: bool
    ) -> None:
        self._ops = ops
        self._eps = config.rms_norm_eps
        prefix = f"layers.{layer}"
        self.attention = Attention(config, weights, ops, layer, rounding)
        self._experts = MixtureOfExperts(config, weights, ops, layer)
        self._attn_mix = HyperConnection(config, weights, ops, f"{prefix}.hc_attn")
        self._ffn_mix = HyperConnection(config, weights, ops, f"{prefix}.hc_ffn")
        self._attn_norm = weights.vector(f"{prefix}.attn_norm.weight")
        self._ffn_norm = weights.vector(f"{prefix}.ffn_norm.weight")

    def __call__(
        self,
        streams: Array,
        tokens: Array,
        states: Sequence[SessionState],
        layer: int,
        cos_sin: Array,
    ) -> Array:
        x, mix = self._attn_mix.collapse(streams)
        h = self._ops.rms_norm(x, self._attn_norm, self._eps)
        positions = [s.length for s in states]
        y = self.attention(h, [s.layers[layer] for s in states], positions, cos_sin)
        streams = self._attn_mix.expand(streams, y, mix)
        x, mix = self._ffn_mix.collapse(streams)
        h = self._ops.rms_norm(x, self._ffn_norm, self._eps)
        return self._ffn_mix.expand(streams, self._experts(h, tokens), mix)


class Network:
    """The model, ready to run.

    `device` is where it computes, `dtype` its activation type ("f32" or "bf16"), `weights_bytes`
    the size of the weights as stored.
    """

    def __init__(
        self,
        config: ModelConfig,
        weights: Weights,
        ops: Ops,
        *,
        device: str,
        dtype: str,
        rounding: bool,
    ) -> None:
        self.config = config
        self.device = device
        self.dtype = dtype
        self.rounding = rounding
        self.weights_bytes = weights.nbytes
        self._weights = weights
        self._ops = ops
        self._embed = weights.embedding("embed.weight")
        self._layers = [
            Layer(config, weights, ops, i, rounding) for i in range(config.num_hidden_layers)
        ]
        self._frequencies = {
            bool(ratio): inverse_frequencies(config, ratio) for ratio in config.compress_ratios
        }
        self._collapse = HyperHead(config, weights, ops)
        self._norm = weights.vector("norm.weight")
        self._head = weights.linear("head.weight")

    def new_state(self) -> SessionState:
        """The state of a sequence with no tokens."""
        return SessionState(self.config, self._ops)

    def forward(self, batch: Sequence[Segment]) -> list[np.ndarray | None]:
        """Advance every segment's state by its ids.

        Returns float32 logits for each: `[vocab]` of the last position, `[n, vocab]` of all, or
        None.  A state may stand in a batch once.  A sequence's result depends on how its own
        tokens are cut, never (bit for bit on a CPU) on what else is in the batch.

        Raises RequestError, before any state changes, for an empty segment, an id outside the
        vocabulary, or a sequence longer than the model's context, and ModelFileError where the
        files changed that weights are still read from.
        """
        self._weights.check_usable()
        for segment in batch:
            self._check(segment)
        groups: dict[tuple[int, Want], list[int]] = {}
        for i, segment in enumerate(batch):
            groups.setdefault((len(segment.ids), segment.logits), []).append(i)
        results: list[np.ndarray | None] = [None] * len(batch)
        for (_, want), members in groups.items():
            logits = self._run([batch[i] for i in members], want)
            if logits is not None:
                for i, of_sequence in zip(members, logits, strict=True):
                    results[i] = of_sequence
        return results

    def _run(self, group: Sequence[Segment], want: Want) -> np.ndarray | None:
        """Segments of one length, as arrays `[B, n, …]`."""
        ops, m = self._ops, self.config.hc_mult
        ids = np.stack([s.ids for s in group])
        states = [s.state for s in group]
        starts = np.array([s.length for s in states])
        positions = starts[:, None] + np.arange(ids.shape[1])
        tables = {c: ops.rope_table(positions, f) for c, f in self._frequencies.items()}

        x = self._embed(ids)
        tokens = ops.asarray(ids)
        streams = ops.xp.broadcast_to(x[:, :, None], (*x.shape[:2], m, x.shape[-1]))
        for i, layer in enumerate(self._layers):
            table = tables[bool(layer.attention.ratio)]
            streams = layer(streams, tokens, states, i, table)
        for state in states:
            state.length += ids.shape[1]
        if want is Want.NONE:
            ops.run([streams])
            return None
        if want is Want.LAST:
            streams = streams[:, -1:]
        x = ops.rms_norm(self._collapse(streams), self._norm, self.config.rms_norm_eps)
        logits: np.ndarray = ops.numpy(self._head(x))
        return logits[:, 0] if want is Want.LAST else logits

    def _check(self, segment: Segment) -> None:
        ids, limit = segment.ids, self.config.max_position_embeddings
        if not len(ids):
            raise RequestError("EMPTY_SEGMENT", "a step without tokens", "send at least one token")
        if ids.min() < 0 or ids.max() >= self.config.vocab_size:
            raise RequestError(
                "TOKEN_OUT_OF_RANGE",
                f"token ids must lie between 0 and {self.config.vocab_size - 1}",
                "use the tokenizer of this model",
            )
        if segment.state.length + len(ids) > limit:
            raise RequestError(
                "CONTEXT_EXCEEDED",
                f"the sequence would be longer than the model's context of {limit} tokens",
                "shorten the prompt",
            )
