"""The stream of a fetch: a checkpoint, then blocks in order, read ahead by the workers.

A record that cannot be read ends the stream with a failure; what came before it is good, and what
was bad is deleted.
"""

import asyncio
import functools
import itertools
import time
from collections import deque
from collections.abc import AsyncIterator

from ds4.v1 import kvcache_pb2 as pb
from ds4.v1 import kvstore_pb2, types_pb2

from ds4_kvcache.cache import Cache
from ds4_kvcache.disk import Kind
from ds4_kvcache.errors import DamagedError, KvError, NotFoundError, RequestError
from ds4_kvcache.index import Node
from ds4_kvcache.record import Record
from ds4_kvcache.rpc.workers import Workers
from ds4_kvcache.store import Store

# gRPC in Python moved most bytes a second with messages of this size.
CHUNK_BYTES = 1_000_000
# Often enough for a lease of 30 s.
_RENEW_S = 5.0

_KINDS = {
    Kind.BLOCK: kvstore_pb2.RECORD_KIND_BLOCK,
    Kind.CHECKPOINT: kvstore_pb2.RECORD_KIND_CHECKPOINT,
}

_Read = tuple[Node, Kind, "asyncio.Future[tuple[Record, bytes]]"]


async def fetch(
    cache: Cache, workers: Workers, request: pb.FetchRequest
) -> AsyncIterator[pb.FetchResponse]:
    """Everything that `request` asks for. Raises NotFoundError, RequestError before the first."""
    store = cache.store(request.store)
    plan = await workers.patient(lambda: _plan(cache, store, request))
    reads: deque[_Read] = deque()
    places = iter(plan)
    start_s, sent_bytes = time.perf_counter(), 0
    renew_s = time.monotonic() + _RENEW_S

    def read_on(count: int) -> None:
        for node, kind in itertools.islice(places, count):
            reads.append((node, kind, workers.quick(functools.partial(store.read, node, kind))))

    read_on(2 * workers.count)
    while reads:
        node, kind, read = reads.popleft()
        try:
            record, data = await read
        except KvError as error:
            if isinstance(error, DamagedError) and store.is_stored(node):
                store.damaged(node, kind, error.message)
            for *_, other in reads:
                other.cancel()
            yield pb.FetchResponse(
                failure=types_pb2.Error(reason=error.reason, message=error.message, hint=error.hint)
            )
            return
        read_on(1)
        if time.monotonic() > renew_s:
            await workers.patient(lambda: cache.renew(request.lease, store))
            renew_s = time.monotonic() + _RENEW_S
        yield pb.FetchResponse(header=_header(node, kind, record))
        for at in range(0, len(data), CHUNK_BYTES):
            yield pb.FetchResponse(data=data[at : at + CHUNK_BYTES])
        sent_bytes += len(data)
    saved_tokens = request.resume_tokens - request.from_block * 128
    await workers.patient(lambda: store.used(plan[0][0], saved_tokens))
    cache.fetch_bytes_s.append(sent_bytes / max(time.perf_counter() - start_s, 1e-6))


def _plan(cache: Cache, store: Store, request: pb.FetchRequest) -> list[tuple[Node, Kind]]:
    with store.lock:
        leased = cache.renew(request.lease, store).node
        way = leased.way()
        depth, rest = divmod(request.resume_tokens, 128)
        if rest or not 0 < depth <= len(way) or request.from_block > depth:
            raise RequestError(
                "BAD_FETCH",
                f"resume_tokens {request.resume_tokens} from block {request.from_block} is not "
                f"within the leased {leased.tokens_up_to} tokens",
                "use the resume_tokens that Lookup gave",
            )
        node = way[depth - 1]
        if not store.is_stored(node) or node.checkpoint is None:
            raise NotFoundError("NO_SUCH_CHECKPOINT", "the checkpoint is no more", "look up again")
    blocks = way[request.from_block : depth]
    return [(node, Kind.CHECKPOINT), *((one, Kind.BLOCK) for one in blocks)]


def _header(node: Node, kind: Kind, record: Record) -> pb.RecordHeader:
    return pb.RecordHeader(
        key=node.key,
        kind=_KINDS[kind],
        codec=kvstore_pb2.Codec.ValueType(record.codec),
        depth=node.depth,
        data_bytes=record.raw_bytes,
        crc32=record.crc32,
        parent_key=node.parent.key,
        checkpoint_kind=kvstore_pb2.CheckpointKind.ValueType(record.kind),
    )
