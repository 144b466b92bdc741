"""The text of one request as its ids come: what the model said becomes the contract's deltas.

Owns an answer's text so far, its counts and its end. Knows neither readers nor how events are kept.
Called by `stream` with what the engine tells, and by `resume` with what it told before a restart.
"""

from collections.abc import Iterable, Iterator
from collections.abc import Sequence as Items
from dataclasses import replace

import structlog
from ds4.v1 import inference_pb2 as pb
from ds4.v1 import types_pb2

from ds4_daemon.engine.loop import Ended, Event, Generated
from ds4_daemon.engine.sampler import Choice, TokenLogprob
from ds4_daemon.errors import DaemonError, UnavailableError
from ds4_daemon.rpc.request import Job
from ds4_daemon.sched.sequence import Finish
from ds4_daemon.text.parse import Delta, DeltaKind
from ds4_daemon.text.stream import TextStream
from ds4_daemon.text.tokenizer import Tokenizer

_REASONS = {
    Finish.STOP: pb.FINISH_REASON_STOP,
    Finish.LENGTH: pb.FINISH_REASON_LENGTH,
    Finish.STOP_STRING: pb.FINISH_REASON_STOP_STRING,
    Finish.CANCELLED: pb.FINISH_REASON_CANCELLED,
    Finish.DEADLINE: pb.FINISH_REASON_DEADLINE,
    Finish.DRAINED: pb.FINISH_REASON_DRAINED,
    Finish.ERROR: pb.FINISH_REASON_ERROR,
}
_ENDINGS: dict[Finish, DaemonError] = {
    Finish.DEADLINE: UnavailableError(
        "DEADLINE_EXCEEDED", "the request's deadline passed", "give it more time"
    ),
    Finish.DRAINED: UnavailableError(
        "DRAINED", "the daemon stops and could not wait any longer", "send the request again later"
    ),
}

_log = structlog.get_logger()


class Answer:
    """The text of one request so far."""

    def __init__(self, job: Job, tokenizer: Tokenizer) -> None:
        self.tokens = 0
        self.finish: Finish | None = None
        self.error: DaemonError | None = None
        self._job = job
        self._tokenizer = tokenizer
        self._text = TextStream(tokenizer, marks=True)
        self._reasoning_tokens = 0

    def recall(self, ids: Iterable[int]) -> None:
        """Be as far as these ids bring it, without saying anything: their deltas were told."""
        for _ in self.take([Generated(Choice(token_id)) for token_id in ids]):
            pass

    def take(self, batch: Items[Event]) -> Iterator[pb.Delta]:
        """The deltas of these events: text of one kind in a row is one, the first has the ids."""
        parser = self._job.parser
        pieces: list[Delta] = []
        chosen: list[Choice] = []
        for event in batch:
            if isinstance(event, Generated):
                chosen.append(event.choice)
                self._reasoning_tokens += parser.reasoning
                pieces += parser.push(self._text.push(event.choice.id))
            elif isinstance(event, Ended):
                self.finish, self.error = event.finish, event.error
                pieces += parser.push(self._text.finish())
                pieces += parser.finish()
            if parser.stop_string:
                self.finish = Finish.STOP_STRING
                break
        self.tokens += len(chosen)
        deltas = [_delta(piece) for piece in _joined(pieces)]
        if chosen and not deltas:
            deltas.append(pb.Delta())
        if chosen:
            deltas[0].token_ids.extend(choice.id for choice in chosen)
            deltas[0].logprobs.extend(self._logprobs(c) for c in chosen if c.logprob is not None)
        yield from deltas

    def finished(self) -> pb.Finished:
        """The last event. To be called once `finish` is set."""
        finish, parser = self.finish or Finish.ERROR, self._job.parser
        reason = _REASONS[finish]
        if finish is Finish.STOP and parser.called_tools:
            reason = pb.FINISH_REASON_TOOL_CALLS
        if parser.malformed:
            _log.warning("tool call malformed", request_id=self._job.sequence.request_id)
        finished = pb.Finished(reason=reason, usage=self._usage(), stop_string=parser.stop_string)
        error = self.error or _ENDINGS.get(finish)
        if error is not None:
            finished.error.CopyFrom(
                types_pb2.Error(reason=error.reason, message=error.message, hint=error.hint)
            )
        return finished

    def _usage(self) -> pb.Usage:
        sequence = self._job.sequence
        usage = pb.Usage(
            prompt_tokens=sequence.prompt_tokens,
            completion_tokens=self.tokens,
            reasoning_tokens=self._reasoning_tokens,
            cached_live_tokens=sequence.cached_live_tokens,
            cached_restored_tokens=sequence.cached_restored_tokens,
            miss_reason=types_pb2.MissReason.ValueType(sequence.miss.value),
        )
        arrived_s, started_s, first_s = (
            sequence.arrived_s,
            sequence.started_s,
            sequence.first_token_s,
        )
        if started_s is not None:
            usage.queue_ms = (started_s - arrived_s) * 1e3
        if started_s is not None and first_s is not None and sequence.last_token_s is not None:
            if not sequence.told:  # else the first one came before the restart
                usage.ttft_ms = (first_s - arrived_s) * 1e3
            began_s = sequence.prefill_began_s or started_s
            computed = sequence.prompt_tokens - sequence.cached_tokens
            usage.prefill_tok_s = computed / max(first_s - began_s, 1e-6)
            if (span_s := sequence.last_token_s - first_s) > 0:
                usage.decode_tok_s = (sequence.generated_tokens - 1) / span_s
        return usage

    def _logprobs(self, choice: Choice) -> types_pb2.TokenLogprobs:
        chosen = TokenLogprob(choice.id, choice.logprob or 0.0)
        return types_pb2.TokenLogprobs(
            chosen=self._logprob(chosen), top=[self._logprob(t) for t in choice.top]
        )

    def _logprob(self, token: TokenLogprob) -> types_pb2.TokenLogprob:
        piece = token_piece(self._tokenizer, token.id)
        return types_pb2.TokenLogprob(token=piece, logprob=token.logprob)


def token_piece(tokenizer: Tokenizer, token_id: int) -> types_pb2.TokenPiece:
    """A token and its bytes, as the contract has them."""
    return types_pb2.TokenPiece(
        id=token_id, piece=tokenizer.piece(token_id), special=token_id in tokenizer.specials
    )


def _joined(pieces: list[Delta]) -> Iterator[Delta]:
    """Adjacent text of one kind, or of one tool call, in one piece."""
    last: Delta | None = None
    for piece in pieces:
        if last is not None and (piece.kind, piece.index, piece.name) == (
            last.kind,
            last.index,
            "",
        ):
            last = replace(last, text=last.text + piece.text)
            continue
        if last is not None:
            yield last
        last = piece
    if last is not None:
        yield last


def _delta(piece: Delta) -> pb.Delta:
    match piece.kind:
        case DeltaKind.REASONING:
            return pb.Delta(reasoning=piece.text)
        case DeltaKind.CONTENT:
            return pb.Delta(content=piece.text)
        case DeltaKind.TOOL_CALL:
            return pb.Delta(
                tool_call=pb.ToolCallDelta(
                    index=piece.index,
                    id=piece.call_id,
                    name=piece.name,
                    arguments_fragment=piece.text,
                )
            )
