"""What is saved leaves here: a bounded queue, and the thread that packs and sends.

The engine puts records in and never waits: when the queue is full the newest is dropped and
counted, and its chain is broken. A record in the queue is a view of a session, so the bound is on
memory that sessions cannot give back. The service is asked what it has before anything is packed.
Beside steps it takes its time (`pace`), unless the queue is half full or somebody waits for it.
No fault here reaches anyone but the log and the counters.
"""

import itertools
import math
import threading
import traceback
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import structlog
from ds4.v1 import kvcache_pb2 as pb
from ds4.v1 import kvstore_pb2, types_pb2

from ds4_daemon.kvlink.layout import Layout
from ds4_daemon.kvlink.pace import Pace
from ds4_daemon.kvlink.pack import Codec, pack, pack_alike
from ds4_daemon.kvlink.records import Save
from ds4_daemon.kvlink.store import LinkError, Store

# A whole second of a fast disk, and less than a prompt of 16k tokens makes.
QUEUE_BYTES = 64_000_000
# One stream of calls; a fault costs no more than this, and records are readable when it ends.
_BATCH_BYTES = 16_000_000
# V4 Flash saves 1.6 MB a second that it prefills at 350 tokens a second. Where more waits it goes
# faster, up to half a queue: then it makes haste, so that nothing is dropped for politeness.
_LEAST_RATE = 2_000_000.0
_DRAIN_S = 8.0
# What is packed and sent between two pauses: about a millisecond's work. With fewer rows the calls
# of NumPy, each of which takes the interpreter from the engine's thread, cost more than the rows.
_ROWS_AT_ONCE = 256
_BYTES_AT_ONCE = 262_144
_BLOCKS_AT_ONCE = 8  # in haste
_HAVE_S = 10.0
_PUT_S = 30.0

_KINDS = (kvstore_pb2.RECORD_KIND_BLOCK, kvstore_pb2.RECORD_KIND_CHECKPOINT)

_log = structlog.get_logger()


class Sender:
    """Started with its thread; `close` gives it a while to send what waits."""

    def __init__(self, store: Store, layout: Layout, queue_bytes: int = QUEUE_BYTES) -> None:
        self.queue_bytes = 0  # waiting or being sent
        self.dropped = 0
        self.stored = 0
        self.duplicates = 0
        self.refused = 0
        self.sent_bytes = 0
        self.beside: Callable[[], bool] = lambda: False  # whether steps run that could be held up
        self._haste = threading.Event()
        self._waited_for = 0  # by so many
        self._packing, self._sending = (Pace(self._rate, self._haste) for _ in range(2))
        self._store = store
        self._layout = layout
        self._most_bytes = queue_bytes
        self._waiting: deque[Save] = deque()
        self._changed = threading.Condition()
        self._closing = False
        # A thread of its own packs the next record while one is sent. gRPC's would be another one
        # for each call, and none of them would find the memory that the last one used.
        self._packer = ThreadPoolExecutor(1, thread_name_prefix="kv-pack")
        self._thread = threading.Thread(target=self._work, name="kv-sender", daemon=True)
        self._thread.start()

    def put(self, save: Save) -> bool:
        """Queue it, or drop it and break its chain; False then."""
        with self._changed:
            if save.chain.broken or self._closing:
                return False
            if self.queue_bytes + save.nbytes > self._most_bytes:
                save.chain.broken = True
                self.dropped += 1
                return False
            self.queue_bytes += save.nbytes
            self._waiting.append(save)
            self._look()
            self._changed.notify_all()
            return True

    def flush(self, patience_s: float) -> bool:
        """Wait until nothing waits; whether that came in time."""
        with self._changed:
            self._waited_for += 1
            self._look()
            try:
                return self._changed.wait_for(lambda: self.queue_bytes == 0, patience_s)
            finally:
                self._waited_for -= 1
                self._look()

    def close(self, patience_s: float) -> None:
        """Send what waits, for so long; the rest is lost."""
        self.flush(patience_s)
        with self._changed:
            self._closing = True
            self._look()
            self._waiting.clear()
            self._changed.notify_all()
        self._thread.join(patience_s)
        self._packer.shutdown(wait=False, cancel_futures=True)

    def _rate(self) -> float:
        """Bytes a second that no step notices."""
        if self._haste.is_set() or not self.beside():
            return math.inf
        return max(_LEAST_RATE, self.queue_bytes / _DRAIN_S)

    def _look(self) -> None:
        """See whether there is haste; under the lock."""
        if self._closing or self._waited_for or self.queue_bytes > self._most_bytes // 2:
            self._haste.set()
        else:
            self._haste.clear()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closing)
                if self._closing:
                    return
                batch = self._take()
            try:
                for _, part in itertools.groupby(batch, key=lambda save: save.chain):
                    self._send(list(part))
            except Exception:  # noqa: BLE001 (logged; other sessions are to be saved too)
                _log.error("saving failed", trace=traceback.format_exc())
                for save in batch:
                    save.chain.broken = save.chain.failed = True
            finally:
                with self._changed:
                    self.queue_bytes -= sum(save.nbytes for save in batch)
                    self._look()
                    self._changed.notify_all()

    def _take(self) -> list[Save]:
        batch: list[Save] = []
        size = 0
        while self._waiting and (not batch or size + self._waiting[0].nbytes <= _BATCH_BYTES):
            batch.append(self._waiting.popleft())
            size += batch[-1].nbytes
        return batch

    def _send(self, saves: list[Save]) -> None:
        """Records of one chain, parents first."""
        chain = saves[0].chain
        if chain.failed:
            return
        try:
            have = self._store.have([save.key for save in saves], _HAVE_S)
            missing = [
                save
                for save, block, checkpoint in zip(
                    saves, have.blocks, have.checkpoints, strict=True
                )
                if not (block if save.kind is None else checkpoint)
            ]
            self.duplicates += len(saves) - len(missing)
            if not missing:
                return
            name, instance = chain.client
            opening = pb.PutOpening(
                salt=chain.salt, client=types_pb2.ClientInfo(name=name, instance=instance)
            )
            done = self._store.put(opening, lambda: self._messages(missing), _PUT_S)
        except (LinkError, ValueError) as fault:
            chain.broken = chain.failed = True
            self.dropped += len(saves)
            _log.warning("records not saved", records=len(saves), why=str(fault))
            return
        self.stored += done.stored
        self.duplicates += done.duplicates
        self.refused += done.dropped
        if done.dropped:
            chain.broken = chain.failed = True
            _log.info("records refused", records=done.dropped, why=done.refusal.message)

    def _messages(self, saves: list[Save]) -> Iterator[pb.PutRequest]:
        packed = self._packer.map(self._pack, _alike(saves))
        for header, data in itertools.chain.from_iterable(packed):
            step = self._store.chunk_bytes
            if self._sending.slow:
                step = min(step, _BYTES_AT_ONCE)
            yield pb.PutRequest(header=header)
            for at in range(0, len(data), step):
                part = data[at : at + step]
                self._sending.did(len(part))
                yield pb.PutRequest(data=part)
            self.sent_bytes += len(data)

    def _pack(self, saves: list[Save]) -> list[tuple[pb.RecordHeader, bytes]]:
        if self._packing.slow:
            packed = [
                pack(save.pieces, self._layout, _ROWS_AT_ONCE, self._packing.did) for save in saves
            ]
        else:
            packed = pack_alike([save.pieces for save in saves], self._layout)
        return [
            (_header(save, codec, data), data)
            for save, (codec, data) in zip(saves, packed, strict=True)
        ]


def _alike(saves: list[Save]) -> Iterator[list[Save]]:
    """Blocks a few at a time, which have one shape; checkpoints each alone."""
    for is_block, part in itertools.groupby(saves, key=lambda save: save.kind is None):
        some = list(part)
        step = _BLOCKS_AT_ONCE if is_block else 1
        for at in range(0, len(some), step):
            yield some[at : at + step]


def _header(save: Save, codec: Codec, data: bytes) -> pb.RecordHeader:
    return pb.RecordHeader(
        key=save.key,
        kind=_KINDS[save.kind is not None],
        codec=kvstore_pb2.Codec.ValueType(codec.value),
        depth=save.depth,
        data_bytes=len(data),
        crc32=zlib.crc32(data),
        parent_key=save.parent_key,
        token_ids=save.token_ids,
        checkpoint_kind=kvstore_pb2.CheckpointKind.ValueType(save.kind.value if save.kind else 0),
    )
