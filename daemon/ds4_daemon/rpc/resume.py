"""After a restart: what the journal holds becomes the requests that run and those that are kept.

Owns what the journal is told of a request and how that is read again. An unfinished request runs
again, with the tokens that were told in the place of those that it would choose: computed as they
were, so that it goes on as it would have. Its events so far stay as they are. Called by `main` and
`inference`.
"""

import asyncio
import json
import sys
import time
import zlib
from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import structlog
from ds4.v1 import inference_pb2 as pb
from ds4.v1 import types_pb2
from google.protobuf.message import DecodeError

from ds4_daemon.engine.loop import Ended, Engine, Events
from ds4_daemon.errors import DaemonError, EngineError, OverloadedError
from ds4_daemon.journal.folder import Found, Journal
from ds4_daemon.journal.records import Kind, pack_parts, read_parts
from ds4_daemon.rpc.accept import Acceptance
from ds4_daemon.rpc.answer import Answer
from ds4_daemon.rpc.kept import Kept
from ds4_daemon.rpc.offload import Offload
from ds4_daemon.rpc.request import Job, Requests
from ds4_daemon.rpc.stream import record
from ds4_daemon.sched.sequence import Finish, Sequence

# A request that ends the daemon so often before its next token would end it for ever. People do
# not kill it five times while it computes one prompt; a stop that was asked for does not count.
_MOST_RESUMPTIONS = 5
# The room for those that wait is smaller than what may have run and waited.
_FULL = frozenset({"QUEUE_FULL", "CLIENT_QUEUE_FULL"})
_ROOM_AGAIN_S = 0.5

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Unfinished:
    """A request that goes on. `about` is what `Resumption.entry` noted of it."""

    kept: Kept
    request: pb.GenerateRequest
    about: dict[str, Any]
    resumptions: int  # since its last event


class Resumption:
    """Of one journal, for one loaded model."""

    def __init__(
        self,
        engine: Engine,
        requests: Requests,
        acceptance: Acceptance,
        journal: Journal,
        model: str,
    ) -> None:
        """`model` tells whether another one was loaded meanwhile."""
        self._engine = engine
        self._requests = requests
        self._acceptance = acceptance
        self._journal = journal
        self._model = model
        self._offload = Offload(sys.maxsize)  # they were accepted: none is turned away again
        self._unfinished: list[Unfinished] = []

    def entry(self, request: pb.GenerateRequest, job: Job, content: str) -> bytes:
        """What the journal is told of a request: all that was chosen for it is written out."""
        settled = pb.GenerateRequest()
        settled.CopyFrom(request)
        sequence, sampling = job.sequence, job.sequence.sampling
        settled.request_id = sequence.request_id
        wire = settled.sampling
        wire.temperature, wire.seed = sampling.temperature, sampling.seed
        wire.top_p, wire.top_k, wire.min_p = sampling.top_p, sampling.top_k, sampling.min_p
        wire.max_tokens = sequence.max_tokens
        about = {
            "arrived_unix_s": time.time() - (time.monotonic() - sequence.arrived_s),
            "digest": content,
            "model": self._model,
            "prompt_crc32": _checksum(sequence.ids),
        }
        return pack_parts([json.dumps(about).encode(), settled.SerializeToString()])

    async def restore(self) -> None:
        """Know what the journal holds. To be called before the first request is taken."""
        files = self._journal.found()
        while (found := await asyncio.to_thread(next, files, None)) is not None:
            try:
                self._restore(found)
            except (DaemonError, DecodeError, ValueError, KeyError) as error:
                _log.warning("journal file removed", file=found.page.path.name, why=str(error))
                found.page.remove()
        self._unfinished.sort(key=lambda one: float(one.about["arrived_unix_s"]))

    def start(self) -> None:
        """Let the unfinished ones go on. To be called once the engine runs."""
        for one in self._unfinished:
            self._acceptance.spawn(self._resume(one))
        self._unfinished.clear()

    def _restore(self, found: Found) -> None:
        first, *rest = found.records
        about_json, request_bytes = read_parts(first.payload)
        about = json.loads(about_json)
        request = pb.GenerateRequest.FromString(request_bytes)
        events: list[pb.GenerateEvent] = []
        resumptions = 0
        for kind, payload in rest:
            if kind is Kind.RESUMED:
                resumptions += 1
            elif kind is Kind.EVENTS:
                resumptions = 0
                events += map(pb.GenerateEvent.FromString, read_parts(payload))
        if not events:
            found.page.remove()  # nobody was told that it was accepted
            return
        digest, _ = str(about["digest"]), float(about["arrived_unix_s"])
        kept = Kept(request.request_id, request.client.name, digest, detach=True, page=found.page)
        kept.recall(events)
        self._acceptance.requests.put(kept)
        if events[-1].HasField("finished"):
            kept.end()
            self._acceptance.requests.ended(kept, found.age_s)
        else:
            self._unfinished.append(Unfinished(kept, request, about, resumptions))

    async def _resume(self, one: Unfinished) -> None:
        """Run it on, or tell it why not. Raises nothing."""
        kept = one.kept
        ids = [token_id for event in kept.events for token_id in event.delta.token_ids]
        try:
            self._check(one)
            size_bytes = one.request.ByteSize()
            job, answer = await self._offload.run(size_bytes, partial(self._prepare, one, ids))
            if (finish := _end(job, answer, ids, kept.cancelled)) is not None:
                self._conclude(kept, answer, finish)
                return
            if kept.page is not None:
                kept.page.append(Kind.RESUMED, b"", None)
            events = await self._submit(kept, job.sequence)
        except Exception as error:  # noqa: BLE001 (whatever it is, those who read are told)
            if isinstance(error, DaemonError) and self._engine.state in ("draining", "failed"):
                kept.end(error)  # not in this process; the journal has it
                return
            _log.warning("request not resumed", request_id=kept.request_id, exc_info=True)
            self._refuse(kept, error, len(ids))
            return
        _log.info("request resumed", request_id=kept.request_id, generated_tokens=len(ids))
        requests = self._acceptance.requests
        await record(self._engine, kept, job, answer, events, requests)

    def _check(self, one: Unfinished) -> None:
        if one.resumptions >= _MOST_RESUMPTIONS:
            raise EngineError(
                "RESUMED_TOO_OFTEN",
                f"the daemon ended {one.resumptions} times before the next token of this request",
                "look into the daemon's log, and send it again under another id",
            )
        if one.about["model"] != self._model:
            raise EngineError(
                "MODEL_CHANGED",
                "the daemon was started again with another model, which cannot go on with this "
                "answer",
                "send the request again under another id",
            )

    def _prepare(self, one: Unfinished, ids: list[int]) -> tuple[Job, Answer]:
        """The sequence and the text as they were after the last event."""
        age_s = time.time() - float(one.about["arrived_unix_s"])
        job = self._requests.job(one.request, time.monotonic() - age_s)
        sequence = job.sequence
        if _checksum(sequence.ids) != one.about["prompt_crc32"]:
            raise EngineError(
                "PROMPT_CHANGED",
                "this version of the daemon makes other tokens of the prompt",
                "send the request again under another id",
            )
        sequence.told = tuple(ids)
        answer = Answer(job, self._requests.tokenizer)
        answer.recall(ids)
        return job, answer

    async def _submit(self, kept: Kept, sequence: Sequence) -> Events:
        while True:
            try:
                events = self._engine.submit(sequence)
            except OverloadedError as error:
                if error.reason not in _FULL:
                    raise
                await asyncio.sleep(_ROOM_AGAIN_S)
                continue
            if kept.cancelled:
                self._engine.stop(sequence, Finish.CANCELLED)
            return events

    def _conclude(self, kept: Kept, answer: Answer, finish: Finish) -> None:
        """Its last token was told before the restart; its end was not."""
        deltas = [] if finish is Finish.STOP_STRING else list(answer.take([Ended(finish)]))
        told = [pb.GenerateEvent(delta=delta) for delta in deltas]
        kept.add([*told, pb.GenerateEvent(finished=answer.finished())])
        kept.end()
        self._acceptance.requests.ended(kept)

    def _refuse(self, kept: Kept, error: Exception, tokens: int) -> None:
        if not isinstance(error, DaemonError):
            error = EngineError("NOT_RESUMED", f"the request could not be resumed: {error!r}")
        finished = pb.Finished(
            reason=pb.FINISH_REASON_ERROR,
            usage=pb.Usage(
                prompt_tokens=kept.events[0].accepted.prompt_tokens, completion_tokens=tokens
            ),
            error=types_pb2.Error(reason=error.reason, message=error.message, hint=error.hint),
        )
        kept.add([pb.GenerateEvent(finished=finished)])
        kept.end()
        self._acceptance.requests.ended(kept)


def _end(job: Job, answer: Answer, ids: list[int], cancelled: bool) -> Finish | None:
    """How it ended already, if it did."""
    if answer.finish is not None:  # a stop string was complete
        return answer.finish
    if ids and ids[-1] in job.sequence.stop_ids:
        return Finish.STOP
    if len(ids) >= job.sequence.max_tokens:
        return Finish.LENGTH
    return Finish.CANCELLED if cancelled else None


def _checksum(ids: "Iterable[int]") -> int:
    return zlib.crc32(array("i", ids).tobytes())
