"""From events to a whole answer, and from a bad end to an error.

`Client.run`, `AsyncClient.run` and ds4ctl put events into a `Collector`; the streams ask `bad_end`.
"""

from dataclasses import dataclass, field

from ds4_client.errors import (
    CancelledError,
    DeadlineError,
    Ds4Error,
    InternalError,
    OverloadedError,
)
from ds4_client.events import (
    Accepted,
    Delta,
    Event,
    Finished,
    FinishReason,
    TokenLogprobs,
    ToolCallDelta,
    Usage,
)
from ds4_client.prompt import Message, ToolCall


@dataclass(frozen=True, slots=True)
class Completion:
    """An answer. `message` is the turn to append to the conversation."""

    text: str
    reasoning: str
    tool_calls: tuple[ToolCall, ...]
    finish_reason: FinishReason
    usage: Usage
    request_id: str
    seed: int
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...]

    @property
    def message(self) -> Message:
        return Message("assistant", self.text, reasoning=self.reasoning, tool_calls=self.tool_calls)


@dataclass(slots=True)
class Collector:
    """Takes the events of one request, in order."""

    accepted: Accepted | None = None
    finished: Finished | None = None
    _content: list[str] = field(default_factory=list)
    _reasoning: list[str] = field(default_factory=list)
    _calls: dict[int, list[ToolCallDelta]] = field(default_factory=dict)
    _token_ids: list[int] = field(default_factory=list)
    _logprobs: list[TokenLogprobs] = field(default_factory=list)

    def add(self, event: Event) -> None:
        match event:
            case Delta():
                self._content.append(event.content)
                self._reasoning.append(event.reasoning)
                self._token_ids.extend(event.token_ids)
                self._logprobs.extend(event.logprobs)
                if event.tool_call is not None:
                    self._calls.setdefault(event.tool_call.index, []).append(event.tool_call)
            case Accepted():
                self.accepted = event
            case Finished():
                self.finished = event
            case _:
                pass

    @property
    def text(self) -> str:
        return "".join(self._content)

    @property
    def reasoning(self) -> str:
        return "".join(self._reasoning)

    def completion(self) -> Completion:
        """The whole answer. Raises InternalError for events that lack their begin or end."""
        if self.accepted is None or self.finished is None:
            raise InternalError("STREAM_CUT", "the daemon ended the events of a request too early")
        return Completion(
            text=self.text,
            reasoning=self.reasoning,
            tool_calls=tuple(
                ToolCall(
                    id="".join(piece.id for piece in pieces),
                    name="".join(piece.name for piece in pieces),
                    arguments="".join(piece.arguments_fragment for piece in pieces),
                )
                for _, pieces in sorted(self._calls.items())
            ),
            finish_reason=self.finished.reason,
            usage=self.finished.usage,
            request_id=self.accepted.request_id,
            seed=self.accepted.seed,
            token_ids=tuple(self._token_ids),
            logprobs=tuple(self._logprobs),
        )


_BAD_ENDS: dict[FinishReason, tuple[type[Ds4Error], str, str]] = {
    FinishReason.CANCELLED: (CancelledError, "CANCELLED", "the request was cancelled"),
    FinishReason.DEADLINE: (DeadlineError, "DEADLINE_EXCEEDED", "the request's time was up"),
    FinishReason.DRAINED: (OverloadedError, "DRAINED", "the daemon stops and ended the request"),
    FinishReason.ERROR: (InternalError, "INTERNAL", "the request failed"),
}


def bad_end(finished: Finished) -> Ds4Error | None:
    """The error that a request's end stands for; None for the ends that an answer has."""
    if finished.reason not in _BAD_ENDS:
        return None
    kind, reason, message = _BAD_ENDS[finished.reason]
    hint = ""
    if finished.error is not None:
        reason, message, hint = finished.error
    return kind(reason, message, hint)
