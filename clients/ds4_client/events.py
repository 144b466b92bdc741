"""What comes back for a request: typed events, and their translation from the contract.

A request's events come in this order: Accepted, Progress..., Delta..., Finished. An event or a
value that this version does not know is left out or reads "unspecified", never an error. Used by
both clients.
"""

from dataclasses import dataclass
from enum import StrEnum

from ds4.v1 import inference_pb2, types_pb2


class _Named(StrEnum):
    """An enum whose members are those of the contract, in lower case without their prefix."""

    @classmethod
    def _missing_(cls, value: object) -> "_Named":
        return cls("unspecified")


class Phase(_Named):
    """Where a request is before its first token."""

    UNSPECIFIED = "unspecified"
    QUEUED = "queued"
    RESTORE = "restore"
    PREFILL = "prefill"
    DECODE = "decode"


class FinishReason(_Named):
    """Why a request ended."""

    UNSPECIFIED = "unspecified"
    STOP = "stop"
    LENGTH = "length"
    STOP_STRING = "stop_string"
    TOOL_CALLS = "tool_calls"
    CANCELLED = "cancelled"
    DEADLINE = "deadline"
    DRAINED = "drained"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Accepted:
    """The request is valid and has its place."""

    request_id: str
    prompt_tokens: int
    queue_position: int  # requests before it
    cached_tokens_estimate: int
    max_tokens: int
    seed: int


@dataclass(frozen=True, slots=True)
class Progress:
    """It waits, or computes its prompt."""

    phase: Phase
    prefilled_tokens: int
    total_tokens: int
    tokens_per_s: float  # 0: unknown
    eta_s: float | None  # to the first token
    queue_position: int


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """A piece of a tool call; `id` and `name` come with the first piece of an `index`."""

    index: int
    id: str
    name: str
    arguments_fragment: str


@dataclass(frozen=True, slots=True)
class Logprob:
    """A token and the natural logarithm of its probability."""

    token_id: int
    piece: bytes  # may be a part of a character
    logprob: float


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """The token that was chosen, and the likeliest at its position."""

    chosen: Logprob
    top: tuple[Logprob, ...]


@dataclass(frozen=True, slots=True)
class Delta:
    """Generated text: at most one of the three kinds, and the tokens it is about."""

    content: str = ""
    reasoning: str = ""
    tool_call: ToolCallDelta | None = None
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprobs, ...] = ()


@dataclass(frozen=True, slots=True)
class Usage:
    """What a request used and how long it took."""

    prompt_tokens: int
    completion_tokens: int
    reasoning_tokens: int
    cached_live_tokens: int  # of the prompt: found in a live session
    cached_restored_tokens: int  # of the prompt: restored from the KV cache service
    miss_reason: str | None  # why the rest was not cached: "cold", "disabled", ...
    queue_ms: float
    ttft_ms: float
    prefill_tok_s: float
    decode_tok_s: float


@dataclass(frozen=True, slots=True)
class Finished:
    """The last event. `error` is (reason, message, hint) where the request ended badly."""

    reason: FinishReason
    usage: Usage
    stop_string: str
    error: tuple[str, str, str] | None


Event = Accepted | Progress | Delta | Finished


def from_event(event: inference_pb2.GenerateEvent) -> Event | None:
    """The event, or None for one that this version does not know."""
    match event.WhichOneof("event"):
        case "delta":
            return _delta(event.delta)
        case "progress":
            return _progress(event.progress)
        case "accepted":
            accepted = event.accepted
            return Accepted(
                request_id=event.request_id,
                prompt_tokens=accepted.prompt_tokens,
                queue_position=accepted.queue_position,
                cached_tokens_estimate=accepted.cached_tokens_estimate,
                max_tokens=accepted.max_tokens,
                seed=accepted.seed,
            )
        case "finished":
            return _finished(event.finished)
        case _:
            return None


def _progress(progress: inference_pb2.Progress) -> Progress:
    return Progress(
        phase=Phase(_word(inference_pb2.Phase, "PHASE", progress.phase)),
        prefilled_tokens=progress.prefilled_tokens,
        total_tokens=progress.total_tokens,
        tokens_per_s=progress.tokens_per_s,
        eta_s=progress.eta_s if progress.HasField("eta_s") else None,
        queue_position=progress.queue_position,
    )


def _delta(delta: inference_pb2.Delta) -> Delta:
    call = delta.tool_call
    return Delta(
        content=delta.content,
        reasoning=delta.reasoning,
        tool_call=ToolCallDelta(call.index, call.id, call.name, call.arguments_fragment)
        if delta.HasField("tool_call")
        else None,
        token_ids=tuple(delta.token_ids),
        logprobs=tuple(
            TokenLogprobs(_logprob(one.chosen), tuple(_logprob(other) for other in one.top))
            for one in delta.logprobs
        ),
    )


def _logprob(one: types_pb2.TokenLogprob) -> Logprob:
    return Logprob(one.token.id, one.token.piece, one.logprob)


def _finished(finished: inference_pb2.Finished) -> Finished:
    usage, error = finished.usage, finished.error
    miss_reason = _word(types_pb2.MissReason, "MISS_REASON", usage.miss_reason)
    return Finished(
        reason=FinishReason(_word(inference_pb2.FinishReason, "FINISH_REASON", finished.reason)),
        usage=Usage(
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
            reasoning_tokens=usage.reasoning_tokens,
            cached_live_tokens=usage.cached_live_tokens,
            cached_restored_tokens=usage.cached_restored_tokens,
            miss_reason=None if miss_reason == "unspecified" else miss_reason,
            queue_ms=usage.queue_ms,
            ttft_ms=usage.ttft_ms,
            prefill_tok_s=usage.prefill_tok_s,
            decode_tok_s=usage.decode_tok_s,
        ),
        stop_string=finished.stop_string,
        error=(error.reason, error.message, error.hint) if finished.HasField("error") else None,
    )


def _word(kind: object, prefix: str, number: int) -> str:
    """The name of an enum's number: MISS_REASON_COLD reads "cold"."""
    value = kind.DESCRIPTOR.values_by_number.get(number)  # type: ignore[attr-defined]
    return value.name.removeprefix(f"{prefix}_").lower() if value else "unspecified"
