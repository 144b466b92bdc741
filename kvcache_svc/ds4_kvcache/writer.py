"""Group commit: one thread a store that brings to disk what changed in memory.

Changes are marked by key; what is written is what the index says when the batch is taken, so a
block that was stored and evicted in between is never written. Deletions go first and in a
transaction of their own: LMDB can use their pages from the next one on. Called by `store` under its
lock.
"""

import contextlib
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import structlog

from ds4_kvcache.disk import Changes, Disk, Kind
from ds4_kvcache.errors import KvError
from ds4_kvcache.index import Index, Node
from ds4_kvcache.record import pack_node, pack_use

# One flush of the drive a batch: 25 ms of F_FULLFSYNC in each 500 ms are 5 %. A batch ends earlier
# at these bytes, so that what waits in memory is bounded and a transaction stays short.
COMMIT_S = 0.5
BATCH_BYTES = 64_000_000
# Past this, whoever stores has to wait: the disk is slower than the daemon.
WAITING_MAX_BYTES = 2 * BATCH_BYTES
_GONE_A_BATCH = 256  # some 100 MB of V4 Flash's blocks
_RETRY_S = 5.0
# A transaction without records writes some pages for each table all the same.
_LEAST_ROOM_BYTES = 1_000_000
_LAST_COMMIT_S = 10.0

_log = structlog.get_logger()


@dataclass(slots=True)
class Written:
    """What the writer did since it was started."""

    records: int = 0
    frame_bytes: int = 0  # of records, as stored
    disk_bytes: int = 0  # of records, whole pages counted


@dataclass(slots=True)
class _Failed:
    """Batches that failed one after another."""

    batches: int = 0
    lost: int = 0  # records
    room_bytes: int = 0  # that the last one would have taken
    retry_s: float = 0.0  # monotonic


class Writer:
    """Owns the write transactions of `disk`. `lock` guards `index` and everything marked here."""

    def __init__(
        self,
        disk: Disk,
        index: Index,
        lock: threading.RLock,
        meta: Callable[[], dict[bytes, bytes]],
        lose: Callable[[Node], int],
    ) -> None:
        """`meta` gives what the table `meta` is to say; it is asked once a batch.

        `lose` deletes what could not be written of a node, and all that hangs on it; how many
        records that were.
        """
        self.disk = disk
        self._index = index
        self._wake = threading.Condition(lock)
        self._meta = meta
        self._lose_node = lose
        self._gone: OrderedDict[bytes, None] = OrderedDict()
        self._dirty: OrderedDict[bytes, int] = OrderedDict()  # to the bytes of frames that wait
        self._uses: dict[bytes, None] = {}
        self._pins: dict[bytes, bytes | None] = {}
        self._roots: dict[bytes, bytes | None] = {}
        self._oldest_s: float | None = None
        self._held = self._hurry = self._closing = self._busy = self._meta_changed = False
        self.batch_bytes = BATCH_BYTES
        self._waiting_bytes = self._in_flight_bytes = 0
        self.written = Written()
        self.commit_ms: deque[float] = deque(maxlen=1000)
        # Why nothing can be written; set by a batch that failed, until one goes through.
        self.problem: KvError | None = None
        self._failed = _Failed()
        self._thread = threading.Thread(target=self._run, name="writer", daemon=True)
        self._thread.start()

    def mark(self, node: Node, frame_bytes: int = 0) -> None:
        """This node changed; `frame_bytes` more of it wait in memory."""
        self._gone.pop(node.key, None)
        self._dirty[node.key] = self._dirty.get(node.key, 0) + frame_bytes
        self._dirty.move_to_end(node.key)
        self._waiting_bytes += frame_bytes
        self._note()

    def mark_gone(self, key: bytes) -> None:
        """This key is no more."""
        self._waiting_bytes -= self._dirty.pop(key, 0)
        self._uses.pop(key, None)
        self._gone[key] = None
        self._gone.move_to_end(key)
        self._note()

    def mark_use(self, key: bytes) -> None:
        self._uses[key] = None
        self._note()

    def mark_pin(self, name: bytes, value: bytes | None) -> None:
        self._pins[name] = value
        self._note()

    def mark_root(self, key: bytes, salt: bytes | None) -> None:
        self._roots[key] = salt
        self._note()

    def mark_meta(self) -> None:
        """What `meta` gives is to be written even where nothing else is."""
        self._meta_changed = True
        self._note()

    def _note(self) -> None:
        if self._oldest_s is None:
            self._oldest_s = time.monotonic()
        self._wake.notify_all()

    @property
    def waiting_bytes(self) -> int:
        """Bytes of records that are in memory only."""
        return self._waiting_bytes + self._in_flight_bytes

    def waits(self, key: bytes) -> bool:
        """Whether the disk does not have yet what became of this key."""
        return self._busy or key in self._gone or key in self._dirty

    @property
    def idle(self) -> bool:
        """Nothing waits and nothing is being written."""
        return not (self._anything or self._busy)

    @property
    def _anything(self) -> bool:
        return bool(
            self._gone
            or self._dirty
            or self._uses
            or self._pins
            or self._roots
            or self._meta_changed
        )

    def flush(self, limit_s: float) -> bool:
        """Write all that waits; whether that was done within the time.

        False at once while nothing can be written: `problem` says why.
        """
        with self._wake:
            self._hurry = True
            self._wake.notify_all()
            self._wake.wait_for(
                lambda: self.idle or self._ended or self.problem is not None, limit_s
            )
            self._hurry = False
            return self.idle

    def wait_for_room(self, limit_s: float) -> bool:
        """Wait until memory has room for more; whether it has."""
        with self._wake:
            return self._wake.wait_for(lambda: self.waiting_bytes < WAITING_MAX_BYTES, limit_s)

    @contextlib.contextmanager
    def hold(self) -> Iterator[None]:
        """Write nothing inside the block; what comes waits in memory."""
        with self._wake:
            self._wake.wait_for(lambda: not self._busy)
            self._held = True
        try:
            yield
        finally:
            with self._wake:
                self._held = False
                self._wake.notify_all()

    def close(self, limit_s: float) -> bool:
        """Write what waits and end the thread; whether everything was written in time.

        A transaction that is under way is waited for: the file must not be closed under it.
        """
        done = self.flush(limit_s) if limit_s else False  # nothing is begun without time for it
        with self._wake:
            self._closing = True
            self._wake.notify_all()
        self._thread.join(max(limit_s, _LAST_COMMIT_S))
        return done and self._ended

    @property
    def _ended(self) -> bool:
        return not self._thread.is_alive()

    def _due(self) -> bool:
        if self._closing:
            return True
        if self._held or not self._anything or self._oldest_s is None:
            return False
        if self.problem is not None:
            return time.monotonic() >= self._failed.retry_s
        full = self._waiting_bytes >= self.batch_bytes or len(self._gone) >= _GONE_A_BATCH
        return self._hurry or full or time.monotonic() >= self._oldest_s + COMMIT_S

    def _run(self) -> None:
        while True:
            with self._wake:
                while not self._due():
                    self._wake.wait(self._patience())
                if self._closing:
                    return
                self._busy = True
            # Deletions may find room where records do not, so room is asked for before it is
            # believed that there is some again.
            if self.problem is not None and not self.disk.has_room(self._failed.room_bytes):
                with self._wake:
                    self._busy = False
                    self._failed.retry_s = time.monotonic() + _RETRY_S
                    self._wake.notify_all()
                continue
            with self._wake:
                changes, nodes = self._take()
            self._commit(changes)
            with self._wake:
                if self.problem is not None:
                    self._failed.lost += self._lose(changes, nodes)
                    self._failed.room_bytes = max(
                        self._failed.room_bytes, self._in_flight_bytes, _LEAST_ROOM_BYTES
                    )
                    self._failed.retry_s = time.monotonic() + _RETRY_S
                    self._meta_changed = True  # something to try it with
                else:
                    self._settle(changes, nodes)
                self._busy, self._in_flight_bytes = False, 0
                self._wake.notify_all()

    def _patience(self) -> float | None:
        if self._oldest_s is None or self._held:
            return None
        due_s = self._oldest_s + COMMIT_S if self.problem is None else self._failed.retry_s
        return max(due_s - time.monotonic(), 0.001)

    def _take(self) -> tuple[Changes, list[Node]]:
        """The next batch: deletions alone, or what was stored, parents first."""
        changes, nodes, size = Changes(meta=self._meta()), [], 0
        self._meta_changed = False
        while self._gone and len(changes.gone) < _GONE_A_BATCH:
            changes.gone.append(self._gone.popitem(last=False)[0])
        if not changes.gone:
            while self._dirty and size < self.batch_bytes:
                key, waited = self._dirty.popitem(last=False)
                self._waiting_bytes -= waited
                if (node := self._index.nodes.get(key)) is None:
                    continue
                size += _add(changes, node)
                nodes.append(node)
            self._in_flight_bytes = size
            for key in self._uses:
                if (found := self._index.nodes.get(key)) is not None:
                    changes.uses[key] = pack_use(found.use)
            changes.pins, changes.roots = self._pins, self._roots
            self._uses, self._pins, self._roots = {}, {}, {}
        self._oldest_s = time.monotonic() if self._anything else None
        return changes, nodes

    def _commit(self, changes: Changes) -> None:
        """Write a batch, or set `problem`. It is logged once, and again when it is over."""
        start_s = time.perf_counter()
        try:
            self.disk.write(changes)
        except Exception as error:  # noqa: BLE001 (a writer that ends would hold all in memory)
            self._note_failure(error)
            return
        if self.problem is not None:
            failed, self._failed, self.problem = self._failed, _Failed(), None
            _log.info("written again", after_failures=failed.batches, lost_records=failed.lost)
        self.commit_ms.append(1000 * (time.perf_counter() - start_s))

    def _note_failure(self, error: Exception) -> None:
        problem, trace = error, None
        if not isinstance(problem, KvError):
            message = f"a batch could not be written: {error}"
            problem, trace = KvError("WRITE_FAILED", message, "see the service's log"), error
        if self.problem is None or str(self.problem) != str(problem):
            _log.error("batch lost", reason=problem.reason, why=problem.message, exc_info=trace)
        self.problem = problem
        self._failed.batches += 1

    def _settle(self, changes: Changes, nodes: list[Node]) -> None:
        """What was written need not stay in memory, unless it was replaced meanwhile."""
        for node in nodes:
            if changes.tokens.get(node.key) is node.tokens:
                node.tokens = None
            if changes.frames.get((node.key, Kind.BLOCK)) is node.block_frame:
                node.block_frame = None
            if changes.frames.get((node.key, Kind.CHECKPOINT)) is node.checkpoint_frame:
                node.checkpoint_frame = None
        for frame in filter(None, changes.frames.values()):
            self.written.records += 1
            self.written.frame_bytes += len(frame)
            self.written.disk_bytes += self.disk.record_bytes(len(frame))

    def _lose(self, changes: Changes, nodes: list[Node]) -> int:
        """Nothing of a batch was written: forget what it would have stored, delete the rest later.

        A cache may lose; it may not hold in memory what never fits. Returns the records lost.
        """
        lost = 0
        for key in changes.gone:
            if key not in self._dirty:
                self._gone[key] = None
        for node in nodes:
            if self._index.nodes.get(node.key) is not node:
                continue  # went with one above it
            if node.block_frame is not None or node.checkpoint_frame is not None:
                lost += self._lose_node(node)
            else:
                self.mark(node)
        self._pins = changes.pins | self._pins
        self._roots = changes.roots | self._roots
        self._uses |= dict.fromkeys(changes.uses)
        self._note()
        return lost

    def forget(self, node: Node) -> int:
        """Take a node and all below it out of the index, for good; the records that were."""
        records = 0
        for gone in reversed(node.below()):
            records += 1 if gone.checkpoint is None else 2
            self._index.remove(gone)
            self.mark_gone(gone.key)
        return records


def _add(changes: Changes, node: Node) -> int:
    """Say what is to be written of a node; the bytes of its frames."""
    key = node.key
    changes.nodes[key] = pack_node(key, node.value())
    if node.tokens is not None:
        changes.tokens[key] = node.tokens
    if node.block_frame is not None:
        changes.frames[key, Kind.BLOCK] = node.block_frame
    if node.checkpoint is None or node.checkpoint_frame is not None:
        changes.frames[key, Kind.CHECKPOINT] = node.checkpoint_frame
    return len(node.block_frame or b"") + len(node.checkpoint_frame or b"")
