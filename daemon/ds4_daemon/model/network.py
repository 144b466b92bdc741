"""DeepSeek V4 from token ids to logits, over any backend.

Owns the order of the layers and the batch; knows no file, no client and no sampling.  The
engine hands over pieces of sequences: prompts in chunks of any size, single tokens, or both,
and has them computed at once (`forward`) or in slices between which it does other things
(`begin`).  Model-spec §2; checked against transformers in tests/model.
"""

from collections.abc import Generator, Iterator, Sequence
from enum import Enum
from typing import NamedTuple

import numpy as np

from ds4_daemon.errors import EngineError, RequestError
from ds4_daemon.kernels.ops import Array, Ops
from ds4_daemon.model.attention import Attention
from ds4_daemon.model.config import ModelConfig
from ds4_daemon.model.hyper import HyperConnection, HyperHead
from ds4_daemon.model.moe import MixtureOfExperts
from ds4_daemon.model.rope import inverse_frequencies
from ds4_daemon.model.state import LayerState, SessionState
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

    def attend(
        self, streams: Array, states: Sequence[LayerState], positions: Sequence[int], cos_sin: Array
    ) -> Generator[Array, None, Array]:
        """The attention half, in the slices of `Attention.run`; the states advance."""
        x, mix = self._attn_mix.collapse(streams)
        h = self._ops.rms_norm(x, self._attn_norm, self._eps)
        y = yield from self.attention.run(h, states, positions, cos_sin)
        return self._attn_mix.expand(streams, y, mix)

    def feed(self, streams: Array, tokens: Array) -> Generator[Array, None, Array]:
        """The feed-forward half, in the slices of `MixtureOfExperts.run`."""
        x, mix = self._ffn_mix.collapse(streams)
        h = self._ops.rms_norm(x, self._ffn_norm, self._eps)
        y = yield from self._experts.run(h, tokens)
        return self._ffn_mix.expand(streams, y, mix)

    def units(self, positions: Sequence[int], n: int) -> int:
        """Slices of both halves for `n` tokens of each sequence."""
        return self.attention.units(positions, n) + self._experts.units(n)


class Group:
    """The segments of a batch that agree in length and want, on their way as `[B, n, …]`."""

    def __init__(self, members: list[int], segments: Sequence[Segment]) -> None:
        self.members = members  # their places in the batch
        self.want = segments[0].logits
        self.states = [s.state for s in segments]
        self.starts = [s.length for s in self.states]
        self.ids = np.stack([s.ids for s in segments])


class Pass:
    """A batch on its way through the layers, advanced in slices of any number of `units`.

    A unit is a block of queries in a layer's attention, some of its experts, or the head.  How a
    pass is sliced, and what else runs between its slices, changes no bit of its results.  From
    `Network.begin` until the pass is done its states belong to it: each is `torn`, its layers lie
    at different positions, and its `length` is still the old one.  A pass may be dropped at any
    unit; its states are lost then, except that what they were at an earlier checkpoint can still
    be forked off them (`engine.prefix_state.fork`), because entries only grow.
    """

    def __init__(
        self,
        ops: Ops,
        groups: Sequence[Group],
        units: int,
        steps: Iterator[Array],
        results: list[np.ndarray | None],
    ) -> None:
        self.units = units
        self.done_units = 0
        self.results = results
        self._ops = ops
        self._groups = groups
        self._steps = steps
        self._last: Array = None  # what the last unit made

    @property
    def done(self) -> bool:
        """Whether the results are there and the states have their new lengths."""
        return self.done_units == self.units

    def advance(self, units: int) -> bool:
        """Compute so many units more, or all that are left; True when the pass is done.

        `results` are then as `Network.forward` returns them.  On a device that computes on its
        own the slice is begun, not waited for.  Raises what the model raises; the pass is then
        to be dropped.
        """
        for _ in range(min(units, self.units - self.done_units)):
            self._last = next(self._steps)
            self.done_units += 1
        if self.done:
            for group in self._groups:
                for state in group.states:
                    state.length += group.ids.shape[1]
                    state.torn = False
            self._groups = ()
        elif self._last is not None:
            self._ops.run([self._last])
        return self.done

    def wait(self) -> None:
        """Until a device that computes on its own has done what `advance` began."""
        if self._last is not None:
            self._ops.numpy(self._last[(slice(1),) * self._last.ndim])


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
        None.  A sequence's result depends on how its own tokens are cut, never (bit for bit on a
        CPU) on what else is in the batch.  Raises as `begin` does.
        """
        begun = self.begin(batch)
        begun.advance(begun.units)
        return begun.results

    def begin(self, batch: Sequence[Segment]) -> Pass:
        """The same in slices; nothing is computed yet.

        Raises RequestError, before any state changes, for an empty segment, an id outside the
        vocabulary, or a sequence longer than the model's context; EngineError for a state that
        another pass holds or that stands in the batch twice; and ModelFileError where the files
        changed that weights are still read from.
        """
        self._weights.check_usable()
        for segment in batch:
            self._check(segment)
        if len({id(s.state) for s in batch}) < len(batch):
            raise _torn()
        alike: dict[tuple[int, Want], list[int]] = {}
        for i, segment in enumerate(batch):
            alike.setdefault((len(segment.ids), segment.logits), []).append(i)
        groups = [Group(members, [batch[i] for i in members]) for members in alike.values()]
        units = 1 + sum(
            layer.units(group.starts, group.ids.shape[1])
            for group in groups
            for layer in self._layers
        )
        results: list[np.ndarray | None] = [None] * len(batch)
        for segment in batch:
            segment.state.torn = True
        return Pass(self._ops, groups, units, self._steps(groups, results), results)

    def _steps(
        self, groups: Sequence[Group], results: list[np.ndarray | None]
    ) -> Generator[Array, None, None]:
        """The work of a pass, unit by unit: yields what each made."""
        streams = [self._embedded(group) for group in groups]
        tables = [self._tables(group) for group in groups]
        tokens = [self._ops.asarray(group.ids) for group in groups]
        for i, layer in enumerate(self._layers):
            for g, group in enumerate(groups):
                states = [state.layers[i] for state in group.states]
                table = tables[g][bool(layer.attention.ratio)]
                streams[g] = yield from layer.attend(streams[g], states, group.starts, table)
                yield streams[g]
                streams[g] = yield from layer.feed(streams[g], tokens[g])
                yield streams[g]
        for group, of_group in zip(groups, streams, strict=True):
            self._finish(group, of_group, results)
        yield streams[-1] if streams else None

    def _embedded(self, group: Group) -> Array:
        x = self._embed(group.ids)
        shape = (*x.shape[:2], self.config.hc_mult, x.shape[-1])
        return self._ops.xp.broadcast_to(x[:, :, None], shape)

    def _tables(self, group: Group) -> dict[bool, Array]:
        """Rotations of the group's positions, by whether a layer compresses."""
        positions = np.array(group.starts)[:, None] + np.arange(group.ids.shape[1])
        return {c: self._ops.rope_table(positions, f) for c, f in self._frequencies.items()}

    def _finish(self, group: Group, streams: Array, results: list[np.ndarray | None]) -> None:
        """The head, which fills in the results."""
        ops = self._ops
        if group.want is Want.NONE:
            ops.run([streams])
            return
        if group.want is Want.LAST:
            streams = streams[:, -1:]
        x = ops.rms_norm(self._collapse(streams), self._norm, self.config.rms_norm_eps)
        logits: np.ndarray = ops.numpy(self._head(x))
        if group.want is Want.LAST:
            logits = logits[:, 0]
        for i, of_sequence in zip(group.members, logits, strict=True):
            results[i] = of_sequence

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
        if segment.state.torn:
            raise _torn()
        if segment.state.length + len(ids) > limit:
            raise RequestError(
                "CONTEXT_EXCEEDED",
                f"the sequence would be longer than the model's context of {limit} tokens",
                "shorten the prompt",
            )


def _torn() -> EngineError:
    return EngineError(
        "STATE_TORN",
        "the session is in the middle of a pass through the model, or was left there",
        "this is a defect of ds4-daemon; send the request again",
    )
