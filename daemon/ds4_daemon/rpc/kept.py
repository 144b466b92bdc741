"""What is kept of each request: its events by offset, while it runs and for a while after its end.

Owns the logs that readers follow, however many read one and from wherever, and which requests of
the past are still known. An event of a detached request can be read only once it is journaled.
Knows no engine and no text. Written by `stream` and `resume`, read by `stream.follow`.
"""

import asyncio
import re
from collections.abc import Iterable
from typing import NamedTuple

from ds4.v1 import inference_pb2 as pb

from ds4_daemon.errors import DaemonError, NotFoundError
from ds4_daemon.journal.folder import Page
from ds4_daemon.journal.records import Kind, pack_parts
from ds4_daemon.rpc.request import Job

# What Python and protobuf need for an event beside the bytes it has on the wire.
_EVENT_BYTES = 400
# A reader that comes late gets text in larger pieces: as many tokens as a screen holds.
_JOINED_TOKENS = 256
# An id that the client library drew, and as much of one as tells it from others.
_DRAWN, _CUT = re.compile(r"[0-9a-f]{32}"), re.compile(r"[0-9a-f]{4,31}")

_ANSWERS = frozenset(
    {
        pb.FINISH_REASON_STOP,
        pb.FINISH_REASON_LENGTH,
        pb.FINISH_REASON_STOP_STRING,
        pb.FINISH_REASON_TOOL_CALLS,
    }
)


class Kept:
    """One request and its events. `page` None: it is not in the journal."""

    def __init__(
        self, request_id: str, client_name: str, digest: str, *, detach: bool, page: Page | None
    ) -> None:
        """`digest` is that of the request as it was sent."""
        self.request_id = request_id
        self.client_name = client_name
        self.digest = digest
        self.detach = detach
        self.page = page
        self.job: Job | None = None  # while the engine has it
        self.events: list[pb.GenerateEvent] = []
        self.shown = 0  # events that may be read
        self.size_bytes = 0
        self.over = asyncio.Event()
        self.failure: DaemonError | None = None  # why its events break off here
        self.abandoned = False  # its last reader left, and it did not ask to go on
        self.cancelled = False  # before the engine had it
        self._readers = 0
        self._grown = asyncio.Event()

    def add(self, events: Iterable[pb.GenerateEvent]) -> None:
        """Append events that came into being together; they can be read once they are safe."""
        new = list(events)
        if not new:
            return
        for offset, event in enumerate(new, len(self.events)):
            event.offset = offset
            self.size_bytes += event.ByteSize() + _EVENT_BYTES
        count = len(self.events) + len(new)
        self.events += new

        def show(written: bool) -> None:
            if not written and self.page is not None:
                # Told all the same; it cannot be gone on with after this process.
                self.page.remove()
                self.page = None
            self.shown = max(self.shown, count)
            self._notify()

        if self.page is None:
            show(True)
        else:
            parts = [event.SerializeToString() for event in new]
            self.page.append(Kind.EVENTS, pack_parts(parts), show)
        for event in new:
            event.request_id = self.request_id

    def recall(self, events: list[pb.GenerateEvent]) -> None:
        """Take over the events of an earlier process."""
        for event in events:
            event.request_id = self.request_id
            self.size_bytes += event.ByteSize() + _EVENT_BYTES
        self.events, self.shown = events, len(events)

    def end(self, failure: DaemonError | None = None) -> None:
        """Nothing follows; with `failure`, not in this process."""
        self.failure = failure
        self.job = None
        self.over.set()
        self._notify()

    def event(self, offset: int) -> pb.GenerateEvent:
        """What there is to read at `offset`: its event, or the text from there on in one.

        Text of one kind in a row is joined, and has the offset of its last part.
        """
        first = self.events[offset]
        if not first.HasField("delta"):
            return first
        joined = pb.GenerateEvent()
        joined.CopyFrom(first)
        for event in self.events[offset + 1 : min(self.shown, offset + _JOINED_TOKENS)]:
            if not event.HasField("delta") or not _continues(joined.delta, event.delta):
                break
            if len(joined.delta.token_ids) + len(event.delta.token_ids) > _JOINED_TOKENS:
                break
            _join(joined.delta, event.delta)
            joined.offset = event.offset
        return joined

    async def grown(self, offset: int, timeout_s: float) -> bool:
        """Wait for the event at `offset`, or the end. False when neither came in time."""
        try:
            async with asyncio.timeout(timeout_s):
                while self.shown <= offset and not self.ended:
                    await self._grown.wait()
        except TimeoutError:
            return False
        return True

    @property
    def ended(self) -> bool:
        """All its events can be read, and nothing follows."""
        return self.over.is_set() and self.shown == len(self.events)

    @property
    def answered(self) -> bool:
        """It came to an end that an answer has."""
        last = self.events[-1] if self.events else pb.GenerateEvent()
        return last.HasField("finished") and last.finished.reason in _ANSWERS

    def enter(self) -> None:
        """One more reader."""
        self._readers += 1
        self.mark()

    def leave(self) -> bool:
        """One reader less; True when the request is not to go on without it."""
        self._readers -= 1
        self.mark()
        self.abandoned = not self._readers and not self.detach and not self.over.is_set()
        return self.abandoned

    def mark(self) -> None:
        """Have status say whether anybody reads."""
        if self.job is not None:
            self.job.sequence.detached = not self._readers

    def _notify(self) -> None:
        grown, self._grown = self._grown, asyncio.Event()
        grown.set()


class _End(NamedTuple):
    """What an ended request takes, and when it is forgotten."""

    size_bytes: int
    expiry: asyncio.TimerHandle


class KeptRequests:
    """Every request that runs, and those that ended not long ago."""

    def __init__(self, keep_s: float, keep_bytes: int) -> None:
        """How long the ended ones are kept, and how many bytes of them at most."""
        self._keep_s = keep_s
        self._keep_bytes = keep_bytes
        self._all: dict[str, Kept] = {}
        self._ended: dict[Kept, _End] = {}  # oldest first
        self._ended_bytes = 0

    def get(self, request_id: str) -> Kept | None:
        return self._all.get(request_id)

    def of(self, request_id: str, client_name: str) -> Kept:
        """The request of this client. Raises NotFoundError, also for one of another's."""
        kept = self._all.get(request_id) or self._begun(request_id, client_name)
        if kept is None or kept.client_name != client_name:
            raise NotFoundError(
                "REQUEST_NOT_FOUND",
                f"no request {request_id!r} of this client runs or is kept",
                "ask under the client name that sent it, within keep_finished_s of its end",
            )
        return kept

    def _begun(self, digits: str, client_name: str) -> Kept | None:
        """The only one of this client whose id nobody chose and begins so, as people cut it."""
        if not _CUT.fullmatch(digits):
            return None
        found = [
            kept
            for request_id, kept in self._all.items()
            if request_id.startswith(digits)
            and _DRAWN.fullmatch(request_id)
            and kept.client_name == client_name
        ]
        return found[0] if len(found) == 1 else None

    def put(self, kept: Kept) -> None:
        """Know a request; an ended one of the same id is forgotten."""
        if (before := self._all.get(kept.request_id)) is not None:
            self.forget(before)
        self._all[kept.request_id] = kept

    def ended(self, kept: Kept, age_s: float = 0.0) -> None:
        """It came to its end, `age_s` ago: keep it for what is left of its time."""
        if kept.abandoned or age_s >= self._keep_s:
            self.forget(kept)
        if self._all.get(kept.request_id) is not kept:
            return
        on_disk_bytes = kept.page.size_bytes if kept.page is not None else 0
        expiry = asyncio.get_running_loop().call_later(self._keep_s - age_s, self.forget, kept)
        self._ended[kept] = _End(kept.size_bytes + on_disk_bytes, expiry)
        self._ended_bytes += self._ended[kept].size_bytes
        while self._ended_bytes > self._keep_bytes:
            self.forget(next(iter(self._ended)))

    def forget(self, kept: Kept) -> None:
        """Know it no more. Those who read it read on."""
        if self._all.get(kept.request_id) is not kept:
            return
        del self._all[kept.request_id]
        if (end := self._ended.pop(kept, None)) is not None:
            end.expiry.cancel()  # it would hold the events until then
            self._ended_bytes -= end.size_bytes
        if kept.page is not None:
            kept.page.remove()
            kept.page = None


def _continues(delta: pb.Delta, more: pb.Delta) -> bool:
    """Whether text goes on: of the same kind and the same tool call, or without any."""
    kind, next_kind = delta.WhichOneof("piece"), more.WhichOneof("piece")
    if kind is None or next_kind is None:
        return True
    call, next_call = delta.tool_call, more.tool_call
    return kind == next_kind and call.index == next_call.index and not next_call.name


def _join(delta: pb.Delta, more: pb.Delta) -> None:
    match more.WhichOneof("piece"):
        case "content":
            delta.content += more.content
        case "reasoning":
            delta.reasoning += more.reasoning
        case "tool_call":
            fragment = delta.tool_call.arguments_fragment + more.tool_call.arguments_fragment
            delta.tool_call.MergeFrom(more.tool_call)
            delta.tool_call.arguments_fragment = fragment
    delta.token_ids.extend(more.token_ids)
    delta.logprobs.extend(more.logprobs)
