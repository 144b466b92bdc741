"""From a folder to an open store: what is checked and repaired before anything is served.

    marker -> length of the file -> LMDB -> schema and identity -> nodes -> recent records

Repair is deletion: a cache may lose anything. A store that cannot be trusted at all, or whose
opening killed the process last time, is set aside and a new one is begun. Called by `cache`.
"""

import shutil
import struct
import threading
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import structlog

from ds4_kvcache.counters import Counters
from ds4_kvcache.disk import SCHEMA, Disk, FullError, Kind
from ds4_kvcache.errors import DamagedError, NotFoundError
from ds4_kvcache.identity import Identity
from ds4_kvcache.index import Index, Node, Root
from ds4_kvcache.record import NodeValue, unpack_node, unpack_use
from ds4_kvcache.store import COMPACT_FOLDER, Store

# What was written in the last minutes before a power cut is what a drive may have lied about.
_RECENT_S = 600.0
_RECENT_BYTES = 1_000_000_000  # a second or two of a start, some batches of a writer
_MARKER = "opening"

_PIN = struct.Struct("<32sd")

_log = structlog.get_logger()


def open_store(
    folder: Path,
    map_bytes: int,
    lock: threading.RLock,
    identity: Identity | None,
    wall_s: Callable[[], float] = time.time,
) -> Store:
    """The store in `folder`, set aside and begun anew where it is damaged.

    `identity` is that of a daemon, None for what is only found on disk. Raises DamagedError for a
    folder that says not whose it is, and RequestError for another layout.
    """
    marker = folder / _MARKER
    if marker.exists():
        set_aside(folder, DamagedError("STORE_DAMAGED", "its opening ended the process last time"))
    try:
        return _open(folder, map_bytes, lock, identity, wall_s)
    except DamagedError as error:
        set_aside(folder, error)
        if identity is None:
            raise
        return _open(folder, map_bytes, lock, identity, wall_s)


def set_aside(folder: Path, error: DamagedError) -> None:
    """Move a damaged store out of the way; one of each is kept to be looked at."""
    if not folder.exists():
        return
    for old in folder.parent.glob(f"{folder.name}.corrupt-*"):
        shutil.rmtree(old, ignore_errors=True)
    aside = folder.with_name(f"{folder.name}.corrupt-{time.time():.0f}")
    folder.rename(aside)
    (aside / _MARKER).unlink(missing_ok=True)
    _log.error("store set aside", reason=error.reason, message=error.message, folder=str(aside))


def _open(
    folder: Path,
    map_bytes: int,
    lock: threading.RLock,
    identity: Identity | None,
    wall_s: Callable[[], float],
) -> Store:
    marker = folder / _MARKER
    try:
        make_private(folder)
        marker.touch(mode=0o600)
    except OSError as error:
        raise FullError(
            "STORE_NOT_OPENED",
            f"{folder} cannot be written: {error.strerror}",
            "make it writable, with room on its disk",
        ) from error
    shutil.rmtree(folder / COMPACT_FOLDER, ignore_errors=True)  # of a process that was killed
    disk = Disk(folder, map_bytes)
    try:
        meta = disk.meta()
        owner = _owner(meta, identity)
        index, bad = _read_index(disk)
        store = Store(disk, index, owner, Counters.unpack(meta.get(b"counters", b"")), lock, wall_s)
    except BaseException:
        disk.close()
        marker.unlink(missing_ok=True)
        raise
    _read_pins(store)
    with lock:
        for key in bad:
            store.writer.mark_gone(key)
        store.writer.mark_meta()  # no longer closed cleanly
    lost = _check_recent(store) if meta and meta.get(b"clean") != b"1" else 0
    store.writer.flush(60.0)
    marker.unlink()
    _log.info(
        "store opened",
        folder=folder.name,
        model=owner.model_name,
        blocks=index.blocks.records,
        checkpoints=index.checkpoints.records,
        deleted=len(bad) + lost,
    )
    return store


def make_private(folder: Path) -> None:
    """Make a folder and what is missing above it, for this user alone. Raises OSError."""
    for path in reversed([one for one in (folder, *folder.parents) if not one.exists()]):
        path.mkdir(mode=0o700, exist_ok=True)  # `parents` would make them open to others


def _owner(meta: dict[bytes, bytes], identity: Identity | None) -> Identity:
    """Whose the store is. Raises DamagedError when that cannot be told or is somebody else."""
    if not meta and identity is not None:
        return identity
    if meta.get(b"schema") != str(SCHEMA).encode():
        raise DamagedError("STORE_OF_OTHER_SCHEMA", "it was written by another version of ds4")
    known = Identity.unpack(meta.get(b"identity", b""))
    if identity is None:
        return known
    if known.fingerprint_json != identity.fingerprint_json:
        raise DamagedError("STORE_DAMAGED", "it holds another fingerprint's values")
    known.check_same(identity)
    return identity


def _read_index(disk: Disk) -> tuple[Index, list[bytes]]:
    """The tree that the tables tell, and the keys of what does not belong to it."""
    index = Index(disk.record_bytes)
    found: list[tuple[int, bytes, NodeValue]] = []
    bad: list[bytes] = []
    for key, value in disk.nodes():
        try:
            node = unpack_node(key, value)
        except DamagedError:
            bad.append(key)
        else:
            found.append((node.depth, key, node))
    for key, salt in disk.roots():
        try:
            index.roots[key] = Root(key, salt.decode())
        except UnicodeDecodeError:
            continue  # then its chains hang on nothing and go
    found.sort(key=lambda one: one[0])
    for depth, key, told in found:
        parent = index.parent(told.parent)
        above = 0 if parent is None or not isinstance(parent, Node) else parent.depth
        if parent is None or depth != above + 1:
            bad.append(key)
            continue
        index.add(Node(key, parent, depth, told.block, told.checkpoint, told.quarantined))
    for key, value in disk.uses():
        if key in index.nodes:
            index.nodes[key].use = unpack_use(value)
    return index, bad


def _read_pins(store: Store) -> None:
    for name, value in store.disk.pins():
        if len(value) == _PIN.size:
            key, until_s = _PIN.unpack(value)
            if key in store.index.nodes:
                store.pins[name.decode(errors="replace")] = (key, until_s)
                store.index.nodes[key].pins.add(name.decode(errors="replace"))


def pack_pin(key: bytes, until_s: float) -> bytes:
    """The value of a pin: its block, and when it ends (Unix time; 0: never)."""
    return _PIN.pack(key, until_s)


def _check_recent(store: Store) -> int:
    """Read what was stored in the last minutes before the end; how many were bad and are gone."""
    stored = [
        (record.created_s, node, kind)
        for node in store.index.nodes.values()
        for kind, record in ((Kind.BLOCK, node.block), (Kind.CHECKPOINT, node.checkpoint))
        if record is not None
    ]
    stored.sort(key=lambda one: -one[0])
    lost, left_bytes = 0, _RECENT_BYTES
    for created_s, node, kind in stored:
        if created_s < stored[0][0] - _RECENT_S or left_bytes < 0:
            break
        left_bytes -= node.block.stored_bytes
        if not is_sound(store, node, kind):
            store.damaged(node, kind, "it does not match its checksum")
            lost += 1
    return lost


def is_sound(store: Store, node: Node, kind: Kind) -> bool:
    """Whether a record can be read and matches its CRC-32; True for one that is gone."""
    try:
        record, data = store.read(node, kind)
    except NotFoundError:
        return True
    except DamagedError:
        return not store.is_stored(node)
    return zlib.crc32(data) == record.crc32
