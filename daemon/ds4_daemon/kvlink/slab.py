"""A restore through shared memory: the service lays records into it, and nobody copies them again.

The memory is made for one restore and is gone with it. It has two windows: while the records of
one are unpacked, the service fills the other. A service that knows nothing of slabs sends its
records as ever, and they are passed on. Called by `store`.
"""

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import grpc
import numpy as np
from ds4.v1 import kvcache_pb2 as pb
from ds4_runtime import shared_memory
from numpy.typing import NDArray

# Making and mapping memory costs some milliseconds; less than this is sent as quickly.
LEAST_BYTES = 8_000_000
# Thirty blocks of the full-size model: more than are in use at once. Twice as much restored no
# faster, and each page of it costs both processes a fault.
WINDOW_BYTES = 16_000_000
_PAGE_BYTES = 16_384

_REFUSED = {"BAD_SLAB", "NO_SUCH_SLAB", "SLAB_TOO_SMALL"}

# Starts a Fetch that has so many seconds; gives its messages, parsed, and can be cancelled.
Call = Callable[[pb.FetchRequest, float], Any]


class Data(NamedTuple):
    """Bytes of a record, as they came."""

    view: memoryview


class Run(NamedTuple):
    """Whole records of blocks that follow one another, of one codec and size, side by side."""

    headers: list[pb.RecordHeader]
    data: NDArray[np.uint8]  # [records, bytes of each]


class NoSlabError(Exception):
    """Shared memory is not to be had; nothing was fetched."""


def fetch(
    call: Call, request: pb.FetchRequest, nbytes: int, end_s: float, in_use: int
) -> Iterator[Any]:
    """What `call` of this request gives, with `Run`s over shared memory.

    A record may be read until `in_use` more of them came, and after the last one. Raises
    NoSlabError before anything came, and what the call raises.
    """
    restore = _Restore(call, request, nbytes, end_s)
    try:
        stream, offset = restore.start(request.from_block, 0), 0
        while stream is not None:
            passed, following, next_block = 0, None, None
            for message in restore.opened(stream):
                if not isinstance(message, pb.FetchResponse) or not message.HasField("placed"):
                    yield message
                    continue
                for run in restore.runs(message.placed.records):
                    yield run
                    passed += len(run.headers)
                if message.placed.HasField("next_block"):
                    next_block = message.placed.next_block
                    # The other window was never written to, or is out of use by now.
                    if following is None and (restore.calls == 1 or passed > in_use):
                        following = restore.start(next_block, restore.size - offset)
            if following is None and next_block is not None:
                # Records so large that both windows may be in use: the rest is sent.
                following = restore.start(next_block, None)
            stream, offset = following, restore.size - offset
    finally:
        restore.close()


class _Restore:
    """The memory of one restore, and its calls."""

    def __init__(self, call: Call, request: pb.FetchRequest, nbytes: int, end_s: float) -> None:
        self.size = -(-min(nbytes, WINDOW_BYTES) // _PAGE_BYTES) * _PAGE_BYTES  # of a window
        self._call = call
        self._request = request
        self._end_s = end_s
        self._streams: list[Any] = []
        try:
            self._name, memory = shared_memory.create(2 * self.size)
        except (ImportError, OSError) as error:
            raise NoSlabError(str(error)) from error
        self._named = True
        self._view = memoryview(memory)

    @property
    def calls(self) -> int:
        return len(self._streams)

    def start(self, from_block: int, offset: int | None) -> Any:
        """A call that goes on there, into the window at `offset`; None: by sending."""
        part = pb.FetchRequest()
        part.CopyFrom(self._request)
        part.from_block, part.blocks_only = from_block, bool(self._streams)
        if offset is not None:
            part.slab, part.slab_offset, part.slab_bytes = self._name, offset, self.size
        self._streams.append(self._call(part, max(self._end_s - time.monotonic(), 0.001)))
        return self._streams[-1]

    def opened(self, stream: Any) -> Iterator[Any]:
        """A call's messages; NoSlabError where the service does not take the slab."""
        try:
            for message in stream:
                self._unlink()  # the service has it mapped, or will never want it
                yield message
        except grpc.RpcError as error:
            reasons = {str(value) for key, value in _metadata(error) if key == "ds4-reason"}
            if self._named and reasons & _REFUSED:
                raise NoSlabError(str(error)) from error
            raise

    def runs(self, headers: Iterable[pb.RecordHeader]) -> Iterator[Run]:
        """These records, as many together as lie side by side."""
        run: list[pb.RecordHeader] = []
        step = 0
        for header in headers:
            if run:
                last = run[-1]
                far = header.slab_offset - last.slab_offset
                if (
                    (header.kind, header.codec, header.data_bytes, header.depth)
                    != (last.kind, last.codec, last.data_bytes, last.depth + 1)
                    or far < header.data_bytes
                    or (len(run) > 1 and far != step)
                ):
                    yield self._run(run, step)
                    run = []
                step = far
            run.append(header)
        if run:
            yield self._run(run, step)

    def _run(self, headers: list[pb.RecordHeader], step: int) -> Run:
        first, size = headers[0].slab_offset, headers[0].data_bytes
        if headers[-1].slab_offset + size > len(self._view):
            return Run(headers, np.empty((len(headers), 0), np.uint8))  # told to be too short
        shape, strides = (len(headers), size), (step, 1)
        return Run(headers, np.ndarray(shape, np.uint8, self._view, first, strides))

    def _unlink(self) -> None:
        if self._named:
            self._named = False
            with contextlib.suppress(OSError):
                shared_memory.unlink(self._name)

    def close(self) -> None:
        """End the calls; the memory goes with the last view of it."""
        for stream in self._streams:
            stream.cancel()
        self._unlink()


def _metadata(error: Exception) -> Iterable[Any]:
    found: Any = error.trailing_metadata() if isinstance(error, grpc.Call) else ()
    return found or ()  # None, where the call never reached a server
