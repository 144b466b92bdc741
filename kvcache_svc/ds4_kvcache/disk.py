"""The LMDB environment of one fingerprint: tables, parts, one transaction a batch of changes.

The only module that knows lmdb; docs/kv-format.md describes the tables. It does not know the tree
or what is worth keeping. `write` belongs to one thread (LMDB's write transactions do), everything
else may be called from any. Called by `store`.
"""

import contextlib
import os
import shutil
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, TypeAlias

import lmdb

from ds4_kvcache.errors import DamagedError, KvError
from ds4_kvcache.meta_page import PAGE_HEADER_BYTES, check_length

# The reason of damage to LMDB's own pages: nothing of the file can be trusted then.
BROKEN = "STORE_DAMAGED"

_Table: TypeAlias = Any  # a table of lmdb, whose type has no public name

SCHEMA = 1
# 64 KiB less LMDB's 16 byte page header: with it a part fills whole pages, whether they have 4 or
# 16 KiB, and all runs of free pages have one length. With values of any length the file grew to
# 1.15 times what it held and allocation slowed down as it aged; with parts to 1.02.
PART_BYTES = 65_520
# A value past this goes to pages of its own; LMDB wants two keys on a page.
_LEAF_OVERHEAD_BYTES = 8 + 35
_READERS = 64  # one a worker of the pool and some for `ds4ctl cache verify`


class Kind(Enum):
    """The two kinds of records, as the keys of the table `part` tell them apart."""

    BLOCK = b"B"
    CHECKPOINT = b"C"


@dataclass(slots=True)
class Changes:
    """What one transaction writes. Everything in it is said by key and may be said again."""

    nodes: dict[bytes, bytes] = field(default_factory=dict)
    tokens: dict[bytes, bytes] = field(default_factory=dict)
    frames: dict[tuple[bytes, Kind], bytes | None] = field(default_factory=dict)  # None: none
    gone: list[bytes] = field(default_factory=list)
    uses: dict[bytes, bytes] = field(default_factory=dict)
    pins: dict[bytes, bytes | None] = field(default_factory=dict)
    roots: dict[bytes, bytes | None] = field(default_factory=dict)
    meta: dict[bytes, bytes] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class DiskStat:
    """Bytes of the file, of its pages in use, and of one page."""

    file_bytes: int
    used_bytes: int
    page_bytes: int


class FullError(KvError):
    """The map or the disk has no room for a batch; nothing of it was written."""


class Disk:
    """An open environment. Raises DamagedError where the file cannot be trusted."""

    def __init__(self, folder: Path, map_bytes: int) -> None:
        self.folder = folder
        self.map_bytes = map_bytes
        self._file = folder / "data.mdb"
        self._end_bytes = 0  # of the pages that LMDB counts
        check_length(self._file)
        try:
            self._open(map_bytes)
        except lmdb.Error as error:
            raise FullError("STORE_NOT_OPENED", f"the store cannot be opened: {error}") from error

    def _open(self, map_bytes: int) -> None:
        with _damage("opened"):
            self._env = lmdb.open(
                str(self.folder),
                map_size=map_bytes,
                max_dbs=8,
                max_readers=_READERS,
                mode=0o600,
                # Data is synced before the page that points to it: a power cut loses the last
                # batches, and a cache may. sync=False was measured to give wrong values then.
                metasync=False,
                meminit=False,
                # With readahead=False cold reads fell from 0.6-2 GB/s to 0.05.
                readahead=True,
            )
            self._node, self._token, self._part, self._use, self._pin, self._root, self._meta = (
                self._env.open_db(name)
                for name in (b"node", b"tok", b"part", b"use", b"pin", b"root", b"meta")
            )
            self._env.reader_check()
            self.page_bytes = int(self._env.stat()["psize"])
        self._fill_up()
        found = self._file.stat()
        self._mapped = (found.st_dev, found.st_ino)

    def is_there(self) -> bool:
        """Whether the file that is mapped is still the one of its name, and whole.

        What somebody deleted or replaced can be read on, but nothing written to it is kept; what
        was cut short ends the process that reads behind its end.
        """
        try:
            found = self._file.stat()
        except OSError:
            return False
        return (found.st_dev, found.st_ino) == self._mapped and found.st_size >= self._end_bytes

    def file_bytes(self) -> int:
        """Size of the file; 0 where it was deleted."""
        try:
            return self._file.stat().st_size
        except OSError:
            return 0

    def has_room(self, count_bytes: int) -> bool:
        """Whether the file could grow by so much: it is made longer and cut again.

        What a disk says that it has free a quota may refuse. For the thread of `write` alone.
        """
        try:
            # With less than twice that others would find the disk full while this tries.
            if shutil.disk_usage(self.folder).free < 2 * count_bytes:
                return False
            with self._file.open("r+b", buffering=0) as file:
                end = file.seek(0, os.SEEK_END)
                try:
                    for _ in range(0, count_bytes, PART_BYTES):
                        file.write(bytes(PART_BYTES))
                    os.fsync(file.fileno())
                finally:
                    file.truncate(end)
        except OSError:
            return False
        return True

    def record_bytes(self, stored_bytes: int) -> int:
        """The bytes that a record's parts take of the file, whole pages counted."""
        whole, rest = divmod(stored_bytes, PART_BYTES)
        pages = whole * self._pages(PART_BYTES)
        if rest + _LEAF_OVERHEAD_BYTES > self.page_bytes // 2:
            return (pages + self._pages(rest)) * self.page_bytes
        return pages * self.page_bytes + rest + _LEAF_OVERHEAD_BYTES

    def _pages(self, value_bytes: int) -> int:
        return -(-(value_bytes + PAGE_HEADER_BYTES) // self.page_bytes)

    def nodes(self) -> Iterator[tuple[bytes, bytes]]:
        return self._all(self._node)

    def uses(self) -> Iterator[tuple[bytes, bytes]]:
        return self._all(self._use)

    def pins(self) -> Iterator[tuple[bytes, bytes]]:
        return self._all(self._pin)

    def roots(self) -> Iterator[tuple[bytes, bytes]]:
        return self._all(self._root)

    def meta(self) -> dict[bytes, bytes]:
        return dict(self._all(self._meta))

    def part_keys(self) -> Iterator[tuple[bytes, Kind, int]]:
        """Key, kind and number of every part; for checks, inside one read transaction."""
        with _damage("read"), self._env.begin() as txn, txn.cursor(self._part) as cursor:
            for found in cursor.iternext(keys=True, values=False):
                yield _split_part_key(bytes(found))

    def token_keys(self) -> Iterator[bytes]:
        """Every key of the table `tok`."""
        with _damage("read"), self._env.begin() as txn, txn.cursor(self._token) as cursor:
            for found in cursor.iternext(keys=True, values=False):
                yield bytes(found)

    def _all(self, table: _Table) -> Iterator[tuple[bytes, bytes]]:
        with _damage("read"), self._env.begin() as txn, txn.cursor(table) as cursor:
            for key, value in cursor:
                yield bytes(key), bytes(value)

    def tokens(self, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        """The packed token ids of those keys that have any."""
        with _damage("read"), self._env.begin() as txn, txn.cursor(self._token) as cursor:
            return {bytes(key): bytes(value) for key, value in cursor.getmulti(keys)}

    def frame(self, key: bytes, kind: Kind, stored_bytes: int) -> bytes:
        """The frame of a record. Raises DamagedError when a part is missing or has another length.

        One short transaction a record: a reader that stays open keeps LMDB from using freed pages.
        """
        count = -(-stored_bytes // PART_BYTES)
        with _damage("read"), self._env.begin(buffers=True) as txn:
            parts = []
            for number in range(count):
                part = txn.get(part_key(key, kind, number), db=self._part)
                expected = min(PART_BYTES, stored_bytes - number * PART_BYTES)
                if part is None or len(part) != expected:
                    raise DamagedError(
                        "PART_MISSING", f"part {number} of {count} of a record is not there"
                    )
                parts.append(part)
            return b"".join(parts)

    def write(self, changes: Changes) -> None:
        """One durable transaction. Raises FullError or DamagedError; then nothing was written."""
        if not self.is_there():
            raise FullError(
                "STORE_GONE",
                "the file of the store was deleted or cut short",
                "another is begun when a daemon opens it again",
            )
        try:
            with _damage("written"), self._env.begin(write=True) as txn:
                for key in changes.gone:
                    for table in (self._node, self._token, self._use):
                        txn.delete(key, db=table)
                    for kind in Kind:
                        self._put_frame(txn, key, kind, b"")
                for (key, kind), frame in changes.frames.items():
                    self._put_frame(txn, key, kind, frame or b"")
                for table, values in (
                    (self._node, changes.nodes),
                    (self._token, changes.tokens),
                    (self._use, changes.uses),
                    (self._pin, changes.pins),
                    (self._root, changes.roots),
                    (self._meta, changes.meta),
                ):
                    _put_all(txn, table, values)
        except DamagedError:
            raise
        except (lmdb.Error, OSError) as error:
            # No room for the map or the file, or a fault of the disk: the transaction is undone.
            raise FullError(
                "STORE_FULL",
                f"a batch could not be written: {error}",
                f"make room on the disk of {self.folder}; it is tried again every few seconds",
            ) from error
        self._fill_up()

    def _put_frame(self, txn: lmdb.Transaction, key: bytes, kind: Kind, frame: bytes) -> None:
        """Write the parts of a frame, and delete those that a longer one left behind it."""
        count = -(-len(frame) // PART_BYTES)
        view = memoryview(frame)
        for number in range(count):
            piece = view[number * PART_BYTES : (number + 1) * PART_BYTES]
            txn.put(part_key(key, kind, number), piece, db=self._part)
        prefix = key + kind.value
        with txn.cursor(self._part) as cursor:
            found = cursor.set_range(part_key(key, kind, count))
            while found and bytes(cursor.key()).startswith(prefix):
                found = cursor.delete()

    def _fill_up(self) -> None:
        # LMDB may count a page that it allocated and gave back without ever writing it; the next
        # start would take the file for cut short.
        end = (int(self._env.info()["last_pgno"]) + 1) * self.page_bytes
        with contextlib.suppress(FileNotFoundError):  # deleted: `is_there` tells it
            if self._file.stat().st_size < end:
                os.truncate(self._file, end)
        self._end_bytes = end

    def stat(self) -> DiskStat:
        with _damage("read"), self._env.begin() as txn:
            pages = 2  # the two meta pages
            for table in (
                None, self._node, self._token, self._part,
                self._use, self._pin, self._root, self._meta,
            ):  # fmt: skip
                found = txn.stat(table) if table is not None else self._env.stat()
                pages += found["branch_pages"] + found["leaf_pages"] + found["overflow_pages"]
        return DiskStat(self.file_bytes(), pages * self.page_bytes, self.page_bytes)

    def readers(self) -> int:
        """Read transactions that are open now, in any process."""
        return len(str(self._env.readers()).splitlines()) - 1

    def copy_compact(self, folder: Path) -> None:
        """Write the pages in use, and no others, to a new environment in `folder`, and sync it.

        Raises FullError.
        """
        try:
            folder.mkdir(mode=0o700)
            with _damage("copied"):
                self._env.copy(str(folder), compact=True)
            with (folder / "data.mdb").open("rb") as copy:
                os.fchmod(copy.fileno(), 0o600)
                os.fsync(copy.fileno())
        except (lmdb.Error, OSError) as error:
            raise FullError(
                "NOT_COMPACTED",
                f"the file could not be written anew: {error}",
                "make room on its disk, then `ds4ctl cache compact`",
            ) from error

    def close(self) -> None:
        self._env.close()


def sync_folder(folder: Path) -> None:
    """Have the names in a folder on disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def part_key(key: bytes, kind: Kind, number: int) -> bytes:
    """Key of a part: block key, kind, number big endian, so that parts lie in their order."""
    return key + kind.value + struct.pack(">H", number)


def _split_part_key(found: bytes) -> tuple[bytes, Kind, int]:
    if len(found) != 35:
        raise DamagedError("PART_DAMAGED", f"a part has a key of {len(found)} bytes")
    try:
        return found[:32], Kind(found[32:33]), int.from_bytes(found[33:], "big")
    except ValueError as error:
        raise DamagedError("PART_DAMAGED", "a part is of no known kind") from error


def _put_all(txn: lmdb.Transaction, table: _Table, values: Mapping[bytes, bytes | None]) -> None:
    for key, value in values.items():
        if value is None:
            txn.delete(key, db=table)
        else:
            txn.put(key, value, db=table)


@contextlib.contextmanager
def _damage(verb: str) -> Iterator[None]:
    try:
        yield
    except (
        lmdb.CorruptedError,
        lmdb.PageNotFoundError,
        lmdb.InvalidError,
        lmdb.VersionMismatchError,
        lmdb.PanicError,
        lmdb.IncompatibleError,
        lmdb.CursorFullError,
        lmdb.BadTxnError,
        lmdb.BadDbiError,
        lmdb.BadValsizeError,
    ) as error:
        raise DamagedError(BROKEN, f"the store cannot be {verb}: {error}") from error
    except SystemError as error:  # py-lmdb's cursor.delete, when the next key cannot be read
        raise DamagedError(BROKEN, f"the store cannot be {verb}: {error.__cause__}") from error
