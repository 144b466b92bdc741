"""From the engine's events to a request's log, and from the log to those who read it.

One task a request takes what the engine makes of it, and each reader follows the log at its own
pace: whoever comes late or is slow gets the same text in fewer events. A request whose last reader
left is cancelled, unless it asked to go on. Called by `inference` and `resume`.
"""

import time
from collections.abc import AsyncGenerator

import structlog
from ds4.v1 import inference_pb2 as pb

from ds4_daemon.engine.loop import Ended, Engine, Event, Events, Generated
from ds4_daemon.errors import DaemonError, EngineError, RequestError, UnavailableError
from ds4_daemon.journal.records import Kind
from ds4_daemon.rpc.answer import Answer
from ds4_daemon.rpc.kept import Kept, KeptRequests
from ds4_daemon.rpc.request import Job
from ds4_daemon.sched.sequence import Finish, Sequence, State

# The contract promises progress once a second; half of it leaves room for a busy event loop.
_PROGRESS_S = 0.5

_PHASES = {
    State.WAITING: pb.PHASE_QUEUED,
    State.RESTORE: pb.PHASE_RESTORE,
    State.DECODE: pb.PHASE_DECODE,
}
# What the engine says of every request when it takes none any more.
_ENGINE_FAILURES = frozenset({"ENGINE_DIED", "ENGINE_TRIPPED"})
# A request that is in the journal goes on after these.
_INTERRUPTED: dict[str, DaemonError] = {
    "drained": UnavailableError(
        "DRAINED",
        "the daemon stops; the request goes on when it runs again",
        "attach to it then, at the offset after the last event",
    ),
    "failed": UnavailableError(
        "ENGINE_FAILED",
        "the engine failed; the request goes on when the daemon runs again",
        "attach to it then, at the offset after the last event",
    ),
}

_log = structlog.get_logger()


def accepted(engine: Engine, sequence: Sequence, cached_tokens: int) -> pb.GenerateEvent:
    """The first event of a request that the engine has taken.

    `cached_tokens` of its prompt were in memory before.
    """
    return pb.GenerateEvent(
        accepted=pb.Accepted(
            prompt_tokens=sequence.prompt_tokens,
            queue_position=engine.room.position(sequence),
            cached_tokens_estimate=cached_tokens,
            max_tokens=sequence.max_tokens,
            seed=sequence.sampling.seed,
        )
    )


async def record(
    engine: Engine, kept: Kept, job: Job, answer: Answer, events: Events, requests: KeptRequests
) -> None:
    """Take all that the engine makes of a request into its log. Raises nothing."""
    sequence, reason = job.sequence, "failed"
    kept.job = job
    kept.mark()
    try:
        reason = await _record(engine, kept, sequence, answer, events)
    except Exception:  # noqa: BLE001 (whatever it is, those who read are told)
        _log.exception("request lost", request_id=kept.request_id)
        kept.end(EngineError("REQUEST_LOST", "the daemon failed while it read the answer"))
    finally:
        engine.stop(sequence, Finish.CANCELLED)  # for one that ended this does nothing
        if kept.failure is None:
            requests.ended(kept)
        _log.info(
            "request ended",
            request_id=kept.request_id,
            client=kept.client_name,
            reason=reason,
            prompt_tokens=sequence.prompt_tokens,
            cached_tokens=sequence.cached_tokens,
            generated_tokens=sequence.generated_tokens,
            age_ms=round((time.monotonic() - sequence.arrived_s) * 1e3),
        )


async def _record(
    engine: Engine, kept: Kept, sequence: Sequence, answer: Answer, events: Events
) -> str:
    """The reason of its end, as it is logged."""
    told_again = len(sequence.told)  # what it said before a restart, and no reader is told twice
    while answer.finish is None:
        batch, told_again = _fresh(await _next(events), told_again)
        if not batch:
            continue
        interruption = _interruption(kept, batch[-1])
        if interruption is not None:
            # Told up to here and no further: what follows depends on tokens that are yet to come.
            kept.add(pb.GenerateEvent(delta=delta) for delta in answer.take(batch[:-1]))
            if interruption == "drained" and kept.page is not None:
                kept.page.append(Kind.EVENTS, b"", None)  # it ends by no fault of the request
            kept.end(_INTERRUPTED[interruption])
            return interruption
        told = [pb.GenerateEvent(delta=delta) for delta in answer.take(batch)]
        if answer.finish is Finish.STOP_STRING:
            kept.add(told)
            told = []
            engine.stop(sequence, Finish.STOP_STRING)
            # Once the engine let go of it, its id is free and its counters stand still.
            while not isinstance(batch[-1], Ended):
                batch = await _next(events)
        if answer.finish is not None:
            told.append(pb.GenerateEvent(finished=answer.finished()))
        kept.add(told)  # what belongs together is one record of the journal
    kept.end()
    reason = pb.FinishReason.Name(kept.events[-1].finished.reason)
    return reason.removeprefix("FINISH_REASON_").lower()


def _fresh(batch: list[Event], told_again: int) -> tuple[list[Event], int]:
    """Without the next `told_again` tokens, and how many of them are still to come."""
    fresh: list[Event] = []
    for event in batch:
        if told_again and isinstance(event, Generated):
            told_again -= 1
        else:
            fresh.append(event)
    return fresh, told_again


def _interruption(kept: Kept, last: Event) -> str | None:
    """Why a request that outlives the process breaks off here, if it does."""
    if kept.page is None or not isinstance(last, Ended):
        return None
    if last.finish is Finish.DRAINED:
        return "drained"
    failed = last.error is not None and last.error.reason in _ENGINE_FAILURES
    return "failed" if failed else None


async def _next(events: Events) -> list[Event]:
    """All events there are, at least one of them; `Ended` is the last."""
    batch = [await events.get()]
    while not events.empty():
        batch.append(events.get_nowait())
    return batch


async def follow(engine: Engine, kept: Kept, offset: int) -> AsyncGenerator[pb.GenerateEvent, None]:
    """The events of a request from `offset` on, to its end.

    Raises RequestError for an offset that it has not come to, and UnavailableError where it goes
    on after a restart.
    """
    if offset > len(kept.events):
        raise RequestError(
            "OFFSET_OUT_OF_RANGE",
            f"offset is {offset}, and the request has {len(kept.events)} events",
            "attach at one more than the offset of the last event received, or at 0",
        )
    kept.enter()
    quiet = True  # no token was told here yet
    try:
        while True:
            while offset < kept.shown:
                event = kept.event(offset)
                quiet = quiet and not event.HasField("delta")
                yield event
                offset = event.offset + 1
            if kept.ended:
                break
            if not await kept.grown(offset, _PROGRESS_S) and offset:
                progress = _progress(engine, kept)
                if quiet or progress.phase != pb.PHASE_DECODE:
                    yield pb.GenerateEvent(
                        request_id=kept.request_id, offset=offset - 1, progress=progress
                    )
        if kept.failure is not None:
            raise kept.failure
    finally:
        if kept.leave() and kept.job is not None:
            engine.stop(kept.job.sequence, Finish.CANCELLED)


def _progress(engine: Engine, kept: Kept) -> pb.Progress:
    if kept.job is None:  # after a restart, before the model is loaded
        return pb.Progress(
            phase=pb.PHASE_QUEUED, total_tokens=kept.events[0].accepted.prompt_tokens
        )
    sequence = kept.job.sequence
    progress = pb.Progress(
        phase=_PHASES.get(sequence.state, pb.PHASE_PREFILL),
        prefilled_tokens=sequence.prefilled_tokens,
        total_tokens=sequence.prompt_tokens,
        queue_position=engine.room.position(sequence),
    )
    computed = sequence.prefilled_tokens - sequence.cached_tokens
    if sequence.prefill_began_s is not None and sequence.first_token_s is None and computed > 0:
        took_s = max(time.monotonic() - sequence.prefill_began_s, 1e-6)
        progress.tokens_per_s = computed / took_s
    if (eta_s := engine.estimate_s(sequence)) is not None:
        progress.eta_s = eta_s
    return progress
