"""The store of one fingerprint: the tree in memory, its records on disk, and what joins them.

Keys are recomputed from token ids before anything is stored, stored tokens are compared on every
lookup, and what is stored can be read at once, from memory until its batch is on disk. It knows no
budget (`cache`) and no value (`evict`). Safe for threads; they share one lock.
"""

import contextlib
import shutil
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ds4_runtime.kv_keys import BLOCK_TOKEN_BYTES, BLOCK_TOKENS, block_key, pack_tokens, root_key

from ds4_kvcache import codec
from ds4_kvcache.counters import Counters
from ds4_kvcache.disk import BROKEN, Disk, Kind, sync_folder
from ds4_kvcache.errors import DamagedError, NotFoundError, RefusedError, RequestError
from ds4_kvcache.identity import Identity
from ds4_kvcache.index import Index, Node, Root
from ds4_kvcache.record import Record
from ds4_kvcache.writer import Writer

# Three damaged records within an hour are a failing disk, not an accident: from then on the store
# only serves what it has.
_DAMAGE_LIMIT, _DAMAGE_WINDOW_S = 3, 3600.0

# Of prefill. With less, a restore would save more seconds than can be counted.
_LEAST_TOK_S = 1e-3

COMPACT_FOLDER = "compact.new"
_LAST_READ_S = 10.0

# For telling "evicted" from "never seen", 100 bytes each.
_EVICTED_REMEMBERED = 50_000


@dataclass(frozen=True, slots=True)
class Put:
    """A record as it arrived: its raw bytes and what its header says."""

    key: bytes
    kind: Kind
    codec: int
    depth: int
    crc32: int
    data: bytes
    parent: bytes = b""
    token_ids: Sequence[int] = ()
    checkpoint_kind: int = 0


class Store:
    """An open store. `lock` guards its index; every method takes it itself."""

    def __init__(
        self,
        disk: Disk,
        index: Index,
        identity: Identity,
        counters: Counters,
        lock: threading.RLock,
        wall_s: Callable[[], float] = time.time,
    ) -> None:
        self.disk = disk
        self.index = index
        self.identity = identity
        self.digest = identity.digest
        self.counters = counters
        self.lock = lock
        self.wall_s = wall_s
        self.pins: dict[str, tuple[bytes, float]] = {}  # name to key and end (Unix time, 0: none)
        self.opened = False  # by a daemon since the service started
        self.clean = self.closed = self._broken = False
        self.evicted: OrderedDict[bytes, None] = OrderedDict()  # keys that went lately
        self._damages_s: list[float] = []
        self._readers, self._compacting = threading.Condition(lock), threading.Lock()
        self._reading = 0
        self.writer = Writer(disk, index, lock, self._meta, self._lose)

    @property
    def folder(self) -> Path:
        return self.disk.folder

    @property
    def broken(self) -> bool:
        """Whether the file can be used no more: its pages are damaged, or it is no longer there."""
        problem = self.writer.problem
        damaged = self._broken or (problem is not None and problem.reason == BROKEN)
        return damaged or not self.disk.is_there()

    @property
    def writable(self) -> bool:
        """Whether it takes records: not after repeated damage."""
        now_s = time.monotonic()
        return sum(now_s - then < _DAMAGE_WINDOW_S for then in self._damages_s) < _DAMAGE_LIMIT

    def _meta(self) -> dict[bytes, bytes]:
        return {
            b"schema": b"1",
            b"identity": self.identity.pack(),
            b"counters": self.counters.pack(),
            b"clean": b"1" if self.clean else b"0",
        }

    # Finding.

    def path(self, salt: str, token_ids: Sequence[int]) -> list[Node]:
        """The stored blocks of this prefix, in order, as far as they go without a gap.

        Stored tokens are compared with those asked for. A block whose tokens differ is damaged and
        is deleted with all below it.
        """
        key, packed = root_key(self.digest, salt), pack_tokens(token_ids)
        path: list[Node] = []
        with self.lock:
            for start in range(0, len(packed) - BLOCK_TOKEN_BYTES + 1, BLOCK_TOKEN_BYTES):
                key = block_key(key, packed[start : start + BLOCK_TOKEN_BYTES])
                node = self.index.nodes.get(key)
                if node is None or node.quarantined:
                    break
                path.append(node)
            found = {node.key: node.tokens for node in path if node.tokens is not None}
        with self.reading():
            found |= self.disk.tokens([node.key for node in path if node.key not in found])
        for place, node in enumerate(path):
            start = place * BLOCK_TOKEN_BYTES
            if found.get(node.key) != packed[start : start + BLOCK_TOKEN_BYTES]:
                if self.is_stored(node):  # else it was evicted in this moment
                    self.damaged(node, Kind.BLOCK, "the stored tokens are not those of the key")
                return path[:place]
        return path

    def is_stored(self, node: Node) -> bool:
        with self.lock:
            return self.index.nodes.get(node.key) is node

    def node(self, key: bytes) -> Node:
        """The node of a key. Raises NotFoundError."""
        with self.lock:
            node = self.index.nodes.get(key)
        if node is None:
            raise NotFoundError("NO_SUCH_BLOCK", f"no block {key.hex()[:16]}… is stored")
        return node

    def tokens(self, node: Node) -> bytes:
        """The packed token ids of a block; empty where the disk has none."""
        tokens = node.tokens
        if tokens is None:
            with self.reading():
                tokens = self.disk.tokens([node.key]).get(node.key, b"")
        return tokens

    def read(self, node: Node, kind: Kind) -> tuple[Record, bytes]:
        """A record and its raw bytes. Raises DamagedError, NotFoundError where it is no more."""
        record, frame = self.frame(node, kind)
        return record, codec.decompress(frame, record.raw_bytes)

    def frame(self, node: Node, kind: Kind) -> tuple[Record, bytes]:
        """The same as it is stored."""
        with self.lock:
            checkpoint = node.checkpoint, node.checkpoint_frame
            block = node.block, node.block_frame
            record, frame = block if kind is Kind.BLOCK else checkpoint
        if record is None:
            raise NotFoundError("NO_SUCH_CHECKPOINT", "the checkpoint was evicted")
        if frame is None:
            with self.reading():
                frame = self.disk.frame(node.key, kind, record.stored_bytes)
        return record, frame

    def check_open(self) -> None:
        """Raise NotFoundError once it is closed, or its file went: to read on could be SIGBUS."""
        if self.closed or not self.disk.is_there():
            raise NotFoundError("NO_SUCH_STORE", "the store was closed, or went", "open it again")

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """Keep the environment open inside the block. Raises NotFoundError where it is no more."""
        with self._readers:
            self.check_open()
            self._reading += 1
        try:
            yield
        except DamagedError as error:
            self._broken = self._broken or error.reason == BROKEN
            raise
        finally:
            with self._readers:
                self._reading -= 1
                self._readers.notify_all()

    # Storing.

    def has(self, key: bytes, kind: Kind) -> bool:
        with self.lock:
            node = self.index.nodes.get(key)
            return node is not None and (kind is Kind.BLOCK or node.checkpoint is not None)

    def check(self, put: Put, salt: str) -> Node | Root:
        """The node (of a checkpoint) or the parent (of a block) that a record belongs to.

        Raises RequestError for a record that contradicts itself, RefusedError for one that has no
        place here now.
        """
        if put.kind is Kind.CHECKPOINT:
            with self.lock:
                node = self.index.nodes.get(put.key)
            return self._check_place(put, node, put.depth)
        if len(put.token_ids) != BLOCK_TOKENS or len(put.parent) != len(put.key):
            raise RequestError(
                "BAD_RECORD", "a block has 128 token ids and the key of its parent", ""
            )
        if block_key(put.parent, pack_tokens(put.token_ids)) != put.key:
            raise RequestError(
                "KEY_MISMATCH",
                f"the key {put.key.hex()[:16]}… does not follow from its parent and its tokens",
                "compute keys with ds4_runtime.kv_keys",
            )
        root = root_key(self.digest, salt)
        with self.lock:
            parent = self.index.parent(put.parent)
            if parent is None and put.parent == root:
                parent = Root(root, salt)  # hung in by `put`, with its first block
            if isinstance(parent, Node) and parent.root.key != root:
                raise RequestError("SALT_MISMATCH", "the parent is in another salt", "")
        return self._check_place(put, parent, put.depth - 1)

    def _check_place(self, put: Put, place: Node | Root | None, depth: int) -> Node | Root:
        if place is None:
            raise RefusedError(
                "PARENT_MISSING",
                f"what the record {put.key.hex()[:16]}… hangs on is not stored",
                "send parents first",
            )
        if depth != (place.depth if isinstance(place, Node) else 0):
            raise RequestError("BAD_RECORD", f"depth {put.depth} is not that of the block", "")
        if isinstance(place, Node) and place.quarantined:
            raise RefusedError(
                "QUARANTINED",
                "the prefix was set aside because its values were found wrong",
                "look at it with `ds4ctl cache inspect`, then evict it",
            )
        return place

    def put(self, put: Put, salt: str, frame: bytes) -> bool:
        """Store a record whose frame was made; False when it is there already.

        The place is looked up again: it may have been evicted while the frame was made.
        """
        record = Record(
            put.codec, put.checkpoint_kind, len(put.data), len(frame), put.crc32, self.wall_s()
        )
        with self.lock:
            if self.has(put.key, put.kind):
                self.counters.duplicates += 1
                self.index.nodes[put.key].touched_s = time.monotonic()
                return False
            place = self.check(put, salt)
            if put.kind is Kind.CHECKPOINT:
                assert isinstance(place, Node)
                node = place
                self.index.set_checkpoint(node, record, frame)
            else:
                if place.key not in self.index.roots and isinstance(place, Root):
                    self.index.roots[place.key] = place
                    self.writer.mark_root(place.key, salt.encode())
                tokens = pack_tokens(put.token_ids)
                node = Node(put.key, place, put.depth, record, tokens=tokens, block_frame=frame)
                self.index.add(node)
            node.touched_s = time.monotonic()
            self.writer.mark(node, len(frame))
            self.counters.puts += 1
            return True

    # Dropping.

    def forget(self, node: Node) -> int:
        """Delete a node and all below it; the records that went. 0 where it is gone already."""
        with self.lock:
            if self.index.nodes.get(node.key) is not node:
                return 0
            root = node.root
            for gone in node.below():
                for name in gone.pins:
                    self.pins.pop(name, None)
                    self.writer.mark_pin(name.encode(), None)
            self.evicted |= dict.fromkeys(gone.key for gone in node.below())
            while len(self.evicted) > _EVICTED_REMEMBERED:
                self.evicted.popitem(last=False)
            records = self.writer.forget(node)
            if not root.children:  # the name of a salt goes with its last block
                del self.index.roots[root.key]
                self.writer.mark_root(root.key, None)
            return records

    def _lose(self, node: Node) -> int:
        """What could not be written is not there; its records count as dropped, not as stored."""
        lost = self.forget(node) if node.block_frame is not None else self.drop_checkpoint(node)
        self.counters.puts -= lost
        self.counters.drops += lost
        return lost

    def drop_checkpoint(self, node: Node) -> bool:
        with self.lock:
            if self.index.nodes.get(node.key) is not node or node.checkpoint is None:
                return False
            self.index.set_checkpoint(node, None, None)
            self.writer.mark(node)
            return True

    def quarantine(self, node: Node) -> int:
        """Keep a node and what is below it, but find them no more; how many records that are."""
        with self.lock:
            if self.index.nodes.get(node.key) is not node:
                return 0
            self.counters.quarantines += 1
            records = 0
            for one in node.below():
                records += 1 if one.checkpoint is None else 2
                one.quarantined = True
                self.writer.mark(one)
            return records

    def damaged(self, node: Node, kind: Kind, why: str) -> None:
        """Delete what cannot be read, and all that is of no use without it."""
        with self.lock:
            self.counters.corruptions += 1
            self._damages_s = [*self._damages_s[1 - _DAMAGE_LIMIT :], time.monotonic()]
            if kind is Kind.BLOCK:
                self.forget(node)
            else:
                self.drop_checkpoint(node)

    def measured(self, prefill_tok_s: float) -> None:
        """Note what computing costs; what is no speed (0: unknown) changes nothing."""
        if _LEAST_TOK_S <= prefill_tok_s < float("inf"):
            with self.lock:
                self.counters.prefill_tok_s = prefill_tok_s

    def used(self, node: Node, tokens: int, *, ended: bool = True) -> None:
        """Count tokens that a restore up to this node saved, and once it `ended` the restore."""
        with self.lock:
            speed = self.counters.prefill_tok_s
            seconds = tokens / speed if speed else 0.0
            node.use.seconds_saved += seconds
            if ended:
                node.use.add(self.wall_s())
                self.counters.hits += 1
            node.touched_s = time.monotonic()
            self.counters.tokens_saved += tokens
            self.counters.seconds_saved += seconds
            if self.is_stored(node):
                self.writer.mark_use(node.key)

    # Life.

    def compact(self) -> tuple[int, int]:
        """Write the file anew without its free pages; its size before and after, in bytes.

        What comes meanwhile waits in memory, and what is read comes from the old file until the
        new one takes its place. Killed at any line, one of the two is there whole.
        """
        fresh = self.folder / COMPACT_FOLDER
        with self._compacting:
            self.writer.flush(60.0)
            if self.writer.problem is not None:
                raise self.writer.problem
            with self.writer.hold():
                try:
                    before = self.disk.file_bytes()
                    with self.reading():
                        self.disk.copy_compact(fresh)
                    with self._readers:
                        self._readers.wait_for(lambda: not self._reading)
                        self.check_open()
                        self._broken = True  # until the new file is open
                        self.disk.close()
                        (fresh / "data.mdb").replace(self.folder / "data.mdb")
                        self.disk = self.writer.disk = Disk(self.folder, self.disk.map_bytes)
                        self._broken = False
                finally:
                    shutil.rmtree(fresh, ignore_errors=True)
                sync_folder(self.folder)  # what was purged must not be back after a power cut
            return before, self.disk.file_bytes()

    def close(self, limit_s: float) -> None:
        """Write what waits, say that all is well, and close the file."""
        with self.lock:
            self.clean = self.closed = True
            self.writer.mark_meta()
        self.writer.close(limit_s)
        with self._readers:
            # What still reads or writes would do so in memory that is no longer mapped.
            if self._readers.wait_for(lambda: not self._reading, _LAST_READ_S):
                self.disk.close()
