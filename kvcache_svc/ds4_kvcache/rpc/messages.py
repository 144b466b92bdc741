"""From what the cache knows to messages of the contract, for the calls that people make."""

import struct
from collections.abc import Callable, Iterator
from statistics import quantiles

from ds4.v1 import kvstore_pb2 as pb
from ds4.v1 import types_pb2
from ds4_runtime.kv_keys import unpack_tokens

from ds4_kvcache import evict
from ds4_kvcache.browse import Prefix, Selection, last_s
from ds4_kvcache.cache import Cache
from ds4_kvcache.disk import DiskStat, Kind
from ds4_kvcache.errors import DamagedError, KvError
from ds4_kvcache.index import NODE_BYTES, Node
from ds4_kvcache.record import Record
from ds4_kvcache.store import Store

# Enough to recognize a prompt by.
_FIRST_TOKENS, _LAST_TOKENS = 64, 32


def selection(message: pb.Selection) -> Selection:
    salt = message.salt if message.HasField("salt") else None
    return Selection(message.fingerprint, salt, message.key, message.idle_s)


def error(fault: KvError) -> types_pb2.Error:
    return types_pb2.Error(reason=fault.reason, message=fault.message, hint=fault.hint)


def finding(message: str) -> types_pb2.Error:
    return types_pb2.Error(
        reason="DAMAGED", message=message, hint="`ds4ctl cache verify --repair` deletes it"
    )


def store_stats(cache: Cache, store: Store) -> pb.StoreStats:
    """Figures of one store."""
    disk = _disk_stat(store)
    with cache.lock:
        index, counters, writer = store.index, store.counters, store.writer
        stats = pb.StoreStats(
            fingerprint=store.digest,
            model_name=store.identity.model_name,
            file_bytes=disk.file_bytes,
            free_bytes=max(disk.file_bytes - disk.used_bytes, 0),
            hits=counters.hits,
            misses=sum(counters.misses.values()),
            tokens_saved=counters.tokens_saved,
            seconds_saved=counters.seconds_saved,
            puts=counters.puts,
            duplicates=counters.duplicates,
            drops=counters.drops,
            evictions=counters.evictions,
            corruptions=counters.corruptions,
            quarantines=counters.quarantines,
            leases=len(cache.leases(store)),
            queue_bytes=writer.waiting_bytes,
            written_bytes=writer.written.disk_bytes,
            commit_p99_ms=_p99(list(writer.commit_ms)),
        )
        for name, one in (("block", index.blocks), ("checkpoint", index.checkpoints)):
            stats.classes.add(
                name=name,
                records=one.records,
                raw_bytes=one.raw_bytes,
                stored_bytes=one.stored_bytes,
            )
        overhead = NODE_BYTES * index.blocks.records
        stats.classes.add(
            name="index", records=index.blocks.records, raw_bytes=overhead, stored_bytes=overhead
        )
        for reason, count in sorted(counters.misses.items()):
            stats.misses_by_reason.add(reason=types_pb2.MissReason.ValueType(reason), count=count)
        if writer.problem is not None:
            stats.problem.CopyFrom(error(writer.problem))
        elif not store.writable:
            stats.problem.CopyFrom(finding("several records were damaged within an hour"))
    return stats


def _disk_stat(store: Store) -> DiskStat:
    try:
        with store.reading():
            return store.disk.stat()
    except DamagedError:
        return DiskStat(0, 0, 0)


def _p99(values: list[float]) -> float:
    return quantiles(values, n=100)[-1] if len(values) > 1 else sum(values)


def total_stats(cache: Cache, stores: list[pb.StoreStats]) -> pb.StoreStats:
    """The sum of all stores."""
    total = pb.StoreStats()
    for field in total.DESCRIPTOR.fields:
        if field.cpp_type == field.CPPTYPE_MESSAGE or field.name in ("fingerprint", "model_name"):
            continue
        values = [getattr(one, field.name) for one in stores]
        setattr(total, field.name, max(values, default=0) if "p99" in field.name else sum(values))
    classes: dict[str, pb.ByteClass] = {}
    misses: dict[types_pb2.MissReason.ValueType, int] = {}
    for one in stores:
        for each in one.classes:
            into = classes.setdefault(each.name, pb.ByteClass(name=each.name))
            into.records += each.records
            into.raw_bytes += each.raw_bytes
            into.stored_bytes += each.stored_bytes
        for miss in one.misses_by_reason:
            misses[miss.reason] = misses.get(miss.reason, 0) + miss.count
        if one.HasField("problem"):
            total.problem.CopyFrom(one.problem)
    if not total.HasField("problem") and (refusal := cache.refusal()) is not None:
        total.problem.CopyFrom(error(refusal))
    total.classes.extend(classes.values())
    for reason, count in sorted(misses.items()):
        total.misses_by_reason.add(reason=reason, count=count)
    speeds = list(cache.fetch_bytes_s)
    total.fetch_mb_s = sum(speeds) / len(speeds) / 1e6 if speeds else 0.0
    return total


def stat(cache: Cache) -> pb.StatResponse:
    """All figures. Reads the disk, so not on the event loop."""
    cache.retire_broken()
    cache.count_writes()
    stores = [store_stats(cache, store) for store in list(cache.stores.values())]
    return pb.StatResponse(
        total=total_stats(cache, stores),
        stores=stores,
        budget_bytes=cache.budget.budget_bytes,
        free_floor_bytes=cache.budget.free_floor_bytes,
        disk_free_bytes=cache.budget.free_bytes(),
        daily_write_budget_bytes=cache.budget.daily_write_bytes,
        written_today_bytes=cache.writes.today_bytes(),
        lost_stores=cache.lost_stores,
    )


def stored_prefix(cache: Cache, one: Prefix) -> pb.StoredPrefix:
    """Reads the first and the last tokens from disk."""
    way = one.node.way()
    now_s = cache.wall_s()
    return pb.StoredPrefix(
        key=one.node.key,
        fingerprint=one.store.digest,
        salt=one.salt,
        tokens=one.node.tokens_up_to,
        own_bytes=one.own_bytes,
        bytes=one.bytes,
        age_s=max(now_s - one.created_s, 0),
        idle_s=max(now_s - one.last_s, 0),
        hits=one.hits,
        seconds_saved=one.seconds_saved,
        pins=one.pins,
        first_token_ids=_tokens(one.store, way[0])[:_FIRST_TOKENS],
        last_token_ids=_tokens(one.store, one.node)[-_LAST_TOKENS:],
        checkpoint_tokens=one.checkpoints,
    )


def _tokens(store: Store, node: Node) -> list[int]:
    try:
        return unpack_tokens(store.tokens(node))
    except (DamagedError, struct.error):
        return []


def block_nodes(
    cache: Cache, found: list[tuple[Store, Node]], *, brief: bool
) -> Iterator[pb.BlockNode]:
    """Blocks as people look at them; without token ids when `brief`."""
    with cache.lock:
        judges = {store: evict.judge(cache.scene(store)) for store in {one for one, _ in found}}
    for store, node in found:
        yield _block_node(cache, store, node, judges[store], [] if brief else _tokens(store, node))


def _block_node(
    cache: Cache,
    store: Store,
    node: Node,
    judge: Callable[[Node], tuple[float, str]],
    token_ids: list[int],
) -> pb.BlockNode:
    with cache.lock:
        now_s = cache.wall_s()
        value, protected_by = judge(node)
        message = pb.BlockNode(
            key=node.key,
            parent_key=node.parent.key,
            depth=node.depth,
            token_ids=token_ids,
            records=[_record(node.block, Kind.BLOCK)],
            child_keys=[child.key for child in node.children],
            age_s=max(now_s - node.block.created_s, 0),
            idle_s=max(now_s - last_s(node), 0),
            frequency=node.use.short_at(now_s),
            value=value,
            protected_by=protected_by,
            salt=node.root.salt,
            fingerprint=store.digest,
            pins=sorted(node.pins),
            quarantined=node.quarantined,
            hits=node.use.hits,
        )
        if node.checkpoint is not None:
            message.records.append(_record(node.checkpoint, Kind.CHECKPOINT))
    return message


def _record(record: Record, kind: Kind) -> pb.StoredRecord:
    return pb.StoredRecord(
        kind=pb.RECORD_KIND_BLOCK if kind is Kind.BLOCK else pb.RECORD_KIND_CHECKPOINT,
        codec=pb.Codec.ValueType(record.codec),
        raw_bytes=record.raw_bytes,
        stored_bytes=record.stored_bytes,
        crc32=record.crc32,
        checkpoint_kind=pb.CheckpointKind.ValueType(record.kind),
    )
