"""The stream of a fetch: a checkpoint, then blocks in order, read ahead by the workers.

Data is sent, or laid into shared memory of the daemon, which costs half as much. A record that
cannot be read ends the stream with a failure; what came before it is good, and what was bad is
deleted.
"""

import asyncio
import contextlib
import functools
import itertools
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator

from ds4.v1 import kvcache_pb2 as pb
from ds4.v1 import kvstore_pb2

from ds4_kvcache import codec
from ds4_kvcache.cache import Cache
from ds4_kvcache.disk import Kind
from ds4_kvcache.errors import DamagedError, KvError, NotFoundError, RequestError
from ds4_kvcache.index import Node
from ds4_kvcache.record import Record
from ds4_kvcache.rpc import messages
from ds4_kvcache.rpc.slab import Slabs
from ds4_kvcache.rpc.workers import Workers
from ds4_kvcache.store import Store

# gRPC in Python moved most bytes a second with messages of this size.
CHUNK_BYTES = 1_000_000
# Often enough for a lease of 30 s.
_RENEW_S = 5.0
# Headers in one message: a message costs as much as unpacking a quarter of a block.
_PLACED_AT_ONCE = 8
# A cache line; records in a slab begin at multiples.
_ALIGNED_BYTES = 64

_KINDS = {
    Kind.BLOCK: kvstore_pb2.RECORD_KIND_BLOCK,
    Kind.CHECKPOINT: kvstore_pb2.RECORD_KIND_CHECKPOINT,
}

_Place = tuple[Node, Kind]


async def fetch(
    cache: Cache, workers: Workers, slabs: Slabs, request: pb.FetchRequest
) -> AsyncIterator[pb.FetchResponse]:
    """Everything that `request` asks for. Raises NotFoundError, RequestError before the first."""
    store = cache.store(request.store)
    end, plan = await workers.patient(lambda: _plan(cache, store, request))
    next_block: int | None = None
    window = memoryview(b"")
    if request.slab:
        window = slabs.window(request.slab, request.slab_offset, request.slab_bytes)
        plan, next_block = _what_fits(plan, request)
    began_s, sent_bytes, blocks, at = time.perf_counter(), 0, 0, 0
    placed = pb.Placed(next_block=next_block)
    reads = _read(cache, workers, store, plan, window, request)
    try:
        async with contextlib.aclosing(reads):
            async for node, kind, record, data in reads:
                blocks += kind is Kind.BLOCK
                if request.slab:
                    placed.records.append(_header(node, kind, record))
                    placed.records[-1].slab_offset = request.slab_offset + at
                    at += _slab_bytes(record.raw_bytes)
                    if len(placed.records) == _PLACED_AT_ONCE:
                        yield pb.FetchResponse(placed=placed)
                        placed = pb.Placed(next_block=next_block)
                else:
                    yield pb.FetchResponse(header=_header(node, kind, record))
                    for at in range(0, len(data), CHUNK_BYTES):
                        yield pb.FetchResponse(data=data[at : at + CHUNK_BYTES])
                sent_bytes += record.raw_bytes
    except _UnreadableError as fault:
        yield pb.FetchResponse(failure=messages.error(fault.error))
        return
    if request.slab and (placed.records or not plan):
        yield pb.FetchResponse(placed=placed)
    if request.slab and next_block is None:
        slabs.forget(request.slab)
    await workers.patient(lambda: store.used(end, 128 * blocks, ended=next_block is None))
    cache.fetch_bytes_s.append(sent_bytes / max(time.perf_counter() - began_s, 1e-6))


class _UnreadableError(Exception):
    """A record could not be read; what was bad is deleted."""

    def __init__(self, error: KvError) -> None:
        super().__init__(error.message)
        self.error = error


async def _read(
    cache: Cache,
    workers: Workers,
    store: Store,
    plan: list[_Place],
    window: memoryview,
    request: pb.FetchRequest,
) -> AsyncGenerator[tuple[Node, Kind, Record, bytes], None]:
    """Records in their order, read ahead; laid into the window where there is one."""
    reads: deque[tuple[Node, Kind, asyncio.Future[tuple[Record, bytes]]]] = deque()
    places, end = iter(plan), 0
    renew_s = time.monotonic() + _RENEW_S

    def read_on(count: int) -> None:
        nonlocal end
        for node, kind in itertools.islice(places, count):
            if window:
                size = _raw_bytes(node, kind)
                start, end = end, end + _slab_bytes(size)
                job = functools.partial(_lay, store, node, kind, window[start : start + size])
            else:
                job = functools.partial(store.read, node, kind)
            reads.append((node, kind, workers.quick(job)))

    read_on(2 * workers.count)
    while reads:
        node, kind, read = reads.popleft()
        try:
            record, data = await read
        except KvError as error:
            for *_, other in reads:
                other.cancel()
            if isinstance(error, DamagedError) and store.is_stored(node):
                await workers.patient(functools.partial(store.damaged, node, kind, error.message))
            raise _UnreadableError(error) from error
        read_on(1)
        if time.monotonic() > renew_s:
            await workers.patient(lambda: cache.renew(request.lease, store))
            renew_s = time.monotonic() + _RENEW_S
        yield node, kind, record, data


def _lay(store: Store, node: Node, kind: Kind, place: memoryview) -> tuple[Record, bytes]:
    """Write a record where the daemon finds it, straight from its frame."""
    record, frame = store.frame(node, kind)
    if len(place) != record.raw_bytes:
        raise NotFoundError("CHANGED", "a record was evicted and stored anew", "look up again")
    codec.decompress_into(frame, place)
    return record, b""


def _slab_bytes(size: int) -> int:
    # Values that are aligned are read faster.
    return -(-size // _ALIGNED_BYTES) * _ALIGNED_BYTES


def _raw_bytes(node: Node, kind: Kind) -> int:
    record = node.block if kind is Kind.BLOCK else node.checkpoint
    return record.raw_bytes if record is not None else 0


def _what_fits(plan: list[_Place], request: pb.FetchRequest) -> tuple[list[_Place], int | None]:
    """As much of a plan as has room in the slab, and the block to go on with, None for none."""
    size = 0
    for count, (node, kind) in enumerate(plan):
        size = _slab_bytes(size) + _raw_bytes(node, kind)
        if size > request.slab_bytes:
            if kind is Kind.CHECKPOINT or not count:
                raise RequestError(
                    "SLAB_TOO_SMALL", f"the slab has {request.slab_bytes} bytes for {size}", ""
                )
            return plan[:count], node.depth - 1
    return plan, None


def _plan(cache: Cache, store: Store, request: pb.FetchRequest) -> tuple[Node, list[_Place]]:
    """The block where the prefix ends, and what to send."""
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
    blocks = [(one, Kind.BLOCK) for one in way[request.from_block : depth]]
    return node, blocks if request.blocks_only else [(node, Kind.CHECKPOINT), *blocks]


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
