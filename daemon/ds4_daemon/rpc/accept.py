"""Takes requests: a new one is run, journaled and kept; a retry joins the one that it repeats.

Owns what makes two requests the same (id, client name, content) and the tasks that record what the
engine makes of each. Knows neither the wire nor how text is read. Called by `inference`.
"""

import asyncio
import hashlib
from collections.abc import Coroutine

from ds4.v1 import inference_pb2 as pb

from ds4_daemon.engine.loop import Engine
from ds4_daemon.errors import DaemonError, RequestError, UnavailableError
from ds4_daemon.journal.folder import Journal, Page
from ds4_daemon.journal.records import Kind
from ds4_daemon.rpc.answer import Answer
from ds4_daemon.rpc.estimate import live_tokens
from ds4_daemon.rpc.kept import Kept, KeptRequests
from ds4_daemon.rpc.request import Job
from ds4_daemon.rpc.stream import accepted, record
from ds4_daemon.sched.sequence import Finish
from ds4_daemon.text.tokenizer import Tokenizer


def digest(request: pb.GenerateRequest) -> str:
    """What a retry has in common with its request: everything but the process that sends it."""
    plain = pb.GenerateRequest()
    plain.CopyFrom(request)
    plain.client.ClearField("instance")
    return hashlib.sha256(plain.SerializeToString(deterministic=True)).hexdigest()


class Acceptance:
    """Runs requests on one engine and keeps them."""

    def __init__(
        self, engine: Engine, tokenizer: Tokenizer, journal: Journal, requests: KeptRequests
    ) -> None:
        self.requests = requests
        self._engine = engine
        self._tokenizer = tokenizer
        self._journal = journal
        self._tasks: set[asyncio.Task[None]] = set()

    async def take(self, job: Job, content: str, entry: bytes | None) -> Kept:
        """The request that this is, run from now on or already before.

        `content` is its digest, `entry` what the journal shall know of it, None: nothing.
        Raises what `Engine.submit` raises, RequestError for an id of another request, and
        OverloadedError or UnavailableError where it cannot be journaled.
        """
        sequence = job.sequence
        request_id, name = sequence.request_id, sequence.client.name
        known = self.requests.get(request_id)
        while known is not None and known.abandoned and not known.over.is_set():
            await known.over.wait()  # it is being cancelled
            known = self.requests.get(request_id)
        if known is not None and (known.answered or not known.over.is_set()):
            if (known.client_name, known.digest) != (name, content):
                raise _reused(request_id)
            return known
        if known is not None and known.client_name != name:
            raise _reused(request_id)
        page = None if entry is None else self._journal.page(request_id, len(entry))
        kept = Kept(request_id, name, content, detach=entry is not None, page=page)
        cached_tokens = live_tokens(self._engine, sequence)
        events = self._engine.submit(sequence)
        self.requests.put(kept)
        written = self._journal_entry(page, entry)
        kept.add([accepted(self._engine, sequence, cached_tokens)])
        answer = Answer(job, self._tokenizer)
        self.spawn(record(self._engine, kept, job, answer, events, self.requests))
        # Whoever leaves while this waits leaves a request behind that is detached.
        if written is not None and not await written:
            kept.abandoned = True  # forgotten once the engine let go of it
            self._engine.stop(sequence, Finish.CANCELLED)
            raise UnavailableError(
                "JOURNAL_NOT_WRITTEN",
                "the request could not be written to the journal",
                "make room on the disk of the home, or leave out `detach`",
            )
        return kept

    def cancel(self, request_id: str) -> bool:
        """Stop a request, also one that the engine does not have again yet."""
        if self._engine.cancel(request_id):
            return True
        kept = self.requests.get(request_id)
        if kept is None or kept.job is not None or kept.over.is_set():
            return False
        kept.cancelled = True
        return True

    def spawn(self, work: Coroutine[None, None, None]) -> None:
        """Have it run to its end, whoever waits."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self, patience_s: float) -> None:
        """After the engine was drained: bring what was told to disk, and record no more."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=patience_s)
        for task in self._tasks:
            task.cancel()
        await self._journal.close(patience_s)

    def _journal_entry(
        self, page: Page | None, entry: bytes | None
    ) -> "asyncio.Future[bool] | None":
        """Whether it is there, once that is known; None when there is nothing to write."""
        if page is None or entry is None:
            return None
        written: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

        def done(there: bool) -> None:
            if not written.done():
                written.set_result(there)

        page.append(Kind.REQUEST, entry, done)
        return written


def _reused(request_id: str) -> DaemonError:
    return RequestError(
        "REQUEST_ID_REUSED",
        f"another request has the id {request_id!r}",
        "give each request its own id, or leave it empty; a retry repeats its request unchanged",
    )
