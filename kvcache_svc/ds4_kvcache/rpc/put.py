"""The stream of a put: headers and data into records, checked, compressed and stored in order.

A record that is not taken is counted, with all that hangs on it; only a stream that is no stream
of records is an error of the call.
"""

import asyncio
import contextlib
import zlib
from collections import deque
from collections.abc import AsyncIterator

from ds4.v1 import kvcache_pb2 as pb
from ds4.v1 import kvstore_pb2
from ds4_runtime.kv_keys import SALT_MAX_BYTES

from ds4_kvcache import codec
from ds4_kvcache.cache import Cache
from ds4_kvcache.disk import Kind
from ds4_kvcache.errors import NotFoundError, RefusedError, RequestError
from ds4_kvcache.leases import Lease
from ds4_kvcache.rpc import messages
from ds4_kvcache.rpc.workers import Workers
from ds4_kvcache.store import Put, Store

# V4 Flash's largest record, a checkpoint in float32, has 12 MB.
MAX_RECORD_BYTES = 64_000_000
# Of a codec and of why a checkpoint is there: newer daemons may know more, and each is one byte.
_MOST_NUMBER = 255
# Records of a stream that are compressed while the next one arrives.
_AT_ONCE = 2

_KINDS = {
    kvstore_pb2.RECORD_KIND_BLOCK: Kind.BLOCK,
    kvstore_pb2.RECORD_KIND_CHECKPOINT: Kind.CHECKPOINT,
}


async def put(
    cache: Cache, workers: Workers, requests: AsyncIterator[pb.PutRequest]
) -> pb.PutResponse:
    """Store what a stream brings. Raises RequestError, NotFoundError."""
    stream: _Stream | None = None
    header: pb.RecordHeader | None = None
    parts: list[bytes] = []  # joined once: a record that came in one piece is never copied
    missing = 0
    work: deque[asyncio.Task[None]] = deque()
    try:
        async for request in requests:
            part = request.WhichOneof("part")
            if stream is None:
                if part != "opening":
                    raise _bad_stream("the first message of a put is its opening")
                store = cache.store(request.opening.store)
                check_salt(request.opening.salt)
                store.measured(request.opening.prefill_tok_s)
                stream = _Stream(cache, workers, store, request.opening.salt)
                continue
            if part == "header" and header is None:
                header = request.header
                _check_header(header)
                parts, missing = [], header.data_bytes
            elif part == "data" and header is not None:
                parts.append(request.data)
                missing -= len(parts[-1])
            else:
                raise _bad_stream(f"{part or 'an empty message'} comes where it has no meaning")
            if missing < 0:
                raise _bad_stream(f"a record has more than the {header.data_bytes} bytes it says")
            if not missing:
                if len(work) == _AT_ONCE:
                    await work.popleft()
                record = _record(header, b"".join(parts))
                before = work[-1] if work else None
                work.append(asyncio.create_task(stream.take(record, before)))
                header, parts = None, []
        if header is not None:
            raise _bad_stream("the stream ends within a record")
        for task in work:
            await task
    finally:
        if stream is not None:
            stream.close()
    return pb.PutResponse() if stream is None else stream.response


class _Stream:
    """Stores the records of one stream, and holds a lease on the last of them.

    The next one hangs on it: it must not be evicted to make room for its own child.
    """

    def __init__(self, cache: Cache, workers: Workers, store: Store, salt: str) -> None:
        self.response = pb.PutResponse()
        self._cache = cache
        self._workers = workers
        self._store = store
        self._salt = salt
        self._lease: Lease | None = None

    async def take(self, put: Put, before: asyncio.Task[None] | None) -> None:
        """Store a record once the one before it is, or count why it was not."""
        store, response = self._store, self.response
        framing = self._workers.quick(lambda: self._frame(put))
        if before is not None:
            await before
        try:
            frame = await framing
            stored = await self._workers.patient(lambda: self._keep(put, frame))
        except (RequestError, RefusedError, NotFoundError) as error:
            if not response.dropped:
                response.refusal.CopyFrom(messages.error(error))
            response.dropped += 1
            store.counters.drops += 1
        else:
            response.stored += stored
            response.duplicates += not stored

    def _frame(self, put: Put) -> bytes:
        """Its frame; of no bytes where the record is stored already."""
        if self._store.has(put.key, put.kind):
            return b""
        if zlib.crc32(put.data) != put.crc32:
            raise RequestError(
                "CRC_MISMATCH", "a record does not match its CRC-32", "send it again"
            )
        return codec.compress(put.data)

    def _keep(self, put: Put, frame: bytes) -> bool:
        """Whether the record is new; raises for one that is not taken."""
        if not self._store.has(put.key, put.kind):
            self._store.check(put, self._salt)
            self._cache.make_room(self._store, len(put.data))
            frame = frame or self._frame(put)  # evicted in between
        stored = self._store.put(put, self._salt, frame)
        with contextlib.suppress(NotFoundError):  # a full disk may have lost it already
            node = self._store.node(put.key)
            self._lease = self._cache.follow(self._lease, self._store, node)
        return stored

    def close(self) -> None:
        """Let go of what was stored."""
        if self._lease is not None:
            self._cache.release(self._lease.id)


def _check_header(header: pb.RecordHeader) -> None:
    if header.kind not in _KINDS or len(header.key) != 32 or not 0 < header.codec <= _MOST_NUMBER:
        raise RequestError("BAD_RECORD", "a record needs its key of 32 bytes, a kind and a codec")
    if not 0 <= header.checkpoint_kind <= _MOST_NUMBER:
        raise RequestError("BAD_RECORD", f"a checkpoint of the kind {header.checkpoint_kind}")
    if not 0 < header.data_bytes <= MAX_RECORD_BYTES:
        raise RequestError(
            "BAD_RECORD",
            f"a record has {header.data_bytes} bytes",
            f"send from 1 to {MAX_RECORD_BYTES}",
        )


def _record(header: pb.RecordHeader, data: bytes) -> Put:
    return Put(
        key=header.key,
        kind=_KINDS[header.kind],
        codec=header.codec,
        depth=header.depth,
        crc32=header.crc32,
        data=data,
        parent=header.parent_key,
        token_ids=header.token_ids,
        checkpoint_kind=header.checkpoint_kind,
    )


def check_salt(salt: str) -> None:
    """Raise RequestError for one that is no name."""
    if len(salt.encode()) > SALT_MAX_BYTES:
        raise RequestError(
            "SALT_TOO_LONG",
            f"the salt has {len(salt.encode())} bytes",
            f"use a name of {SALT_MAX_BYTES} at most",
        )


def _bad_stream(message: str) -> RequestError:
    return RequestError(
        "BAD_STREAM", message, "send an opening, then for each record a header and its data"
    )
