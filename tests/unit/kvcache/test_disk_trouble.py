"""A disk that fills up, a file that goes while it is open: what is stored stays, all else heals."""

import errno
import resource
import shutil
import threading
from collections import namedtuple
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lmdb
import pytest
from ds4_kvcache import browse, check, writer
from ds4_kvcache.browse import Selection
from ds4_kvcache.budget import Budget
from ds4_kvcache.cache import Cache
from ds4_kvcache.disk import FullError, Kind
from ds4_kvcache.errors import NotFoundError, RefusedError
from ds4_kvcache.house import House
from ds4_kvcache.lookup import find
from ds4_kvcache.rpc import messages
from ds4_kvcache.store import Store
from structlog.testing import capture_logs

from tests.unit.kvcache.small_cache import Clock, block, chain, open_cache, open_store, prompt, put

Usage = namedtuple("Usage", "total used free")


@contextmanager
def no_growth(store: Store) -> Iterator[None]:
    """No file may become longer than the store's is: writing fails with EFBIG, as with ENOSPC."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (store.disk.file_bytes(), before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


class FakeDisk:
    """Says how much is free; the cache's files are those of the real one."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.free = 0
        monkeypatch.setattr(shutil, "disk_usage", self.usage)

    def usage(self, _folder: Path) -> Usage:
        return Usage(10**12, 10**12 - self.free, self.free)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> FakeDisk:
    return FakeDisk(monkeypatch)


def refused(cache: Cache, store: Store, size: int = 100_000) -> str:
    with pytest.raises(RefusedError) as error:
        cache.make_room(store, size)
    assert error.value.hint
    return error.value.reason


def test_a_disk_that_fills_up_takes_nothing_until_it_has_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a batch had no room nothing is evicted for what would be lost too, until it has."""
    monkeypatch.setattr(writer, "_RETRY_S", 0.05)
    cache = open_cache(tmp_path, budget_bytes=16_000_000)
    store = open_store(cache)
    kept = chain(store, 150, size=200_000)  # just below the high water mark
    assert store.writer.flush(10)
    before = store.index.blocks.records
    recovered = threading.Event()
    with capture_logs() as logs:
        with no_growth(store):
            chain(store, 8, seed=2, size=200_000)
            assert not store.writer.flush(10)
            assert refused(cache, store) == "STORE_FULL"
            for _ in range(10):  # in time that batches are tried again
                assert not recovered.wait(0.05)
            assert refused(cache, store) == "STORE_FULL"
            assert store.index.blocks.records == before
            assert store.read(kept[0], Kind.BLOCK)[1]
        while store.writer.problem is not None:
            assert not recovered.wait(0.05)
        cache.make_room(store, 100_000)
    put(store, block(store, None, 99))
    assert store.writer.flush(10)
    told = [entry["event"] for entry in logs if entry["event"] in ("batch lost", "written again")]
    assert told == ["batch lost", "written again"]
    (again,) = [entry for entry in logs if entry["event"] == "written again"]
    assert again["lost_records"] == 8
    stats = messages.store_stats(cache, store)
    assert (stats.puts, stats.drops) == (151, 8), "a record is stored or dropped, not both"
    cache.close(10)


def test_checks_do_not_wait_for_a_disk_that_takes_nothing(cache: Cache, store: Store) -> None:
    """While nothing can be written, verify tells why and checks the rest; compact is refused."""
    chain(store, 3, size=100_000)
    assert store.writer.flush(10)
    with no_growth(store):
        chain(store, 3, seed=2, size=100_000)
        assert not store.writer.flush(10)
        *_, last = check.verify(cache, Selection(), structure_only=False, repair=False)
        assert (last.checked, last.bad) == (3, 0)
        assert last.problem is not None and last.problem.reason == "STORE_FULL"
        with pytest.raises(FullError, match="could not be written"):
            store.compact()
        problem = messages.stat(cache).total.problem
    assert problem.reason == "STORE_FULL" and problem.hint


class FullCopy:
    """An environment that has room for a part of its copy only."""

    def __init__(self, whole: Any) -> None:
        self._whole = whole

    def copy(self, path: str, *, compact: bool) -> None:
        (Path(path) / "data.mdb").write_bytes(bytes(1000))
        raise lmdb.DiskError("mdb_env_copy3: No space left on device")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._whole, name)


def test_a_purge_says_what_a_full_disk_leaves(
    cache: Cache, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half a copy takes no room on a full disk, and who purged is told that more is to do."""
    kept = chain(store, 2)
    chain(store, 2, seed=2, salt="very-secret-salt")
    with monkeypatch.context() as patch:
        patch.setattr(store.disk, "_env", FullCopy(store.disk._env))
        with pytest.raises(RefusedError, match="No space left") as error:
            browse.purge(cache, b"", "very-secret-salt", False, False)
        assert error.value.reason == "NOT_OVERWRITTEN" and "compact" in error.value.hint
        with pytest.raises(FullError):
            store.compact()
    assert not list(store.folder.glob("compact*"))
    assert [node.key for node in store.index.nodes.values()] == [node.key for node in kept]
    store.compact()
    assert b"very-secret-salt" not in (store.folder / "data.mdb").read_bytes()


def test_a_full_disk_costs_no_stored_record(tmp_path: Path, disk: FakeDisk) -> None:
    """Where the disk has no page left, what comes is refused before anything goes for it."""
    disk.free = 10**9
    cache = open_cache(tmp_path, budget_bytes=16_000_000)
    store = open_store(cache)
    chain(store, 150, size=200_000)
    assert store.writer.flush(10)
    before = store.index.blocks.records
    disk.free = 0
    assert refused(cache, store, 1_000_000) == "NO_ROOM"
    assert store.index.blocks.records == before
    disk.free = 10**9
    cache.make_room(store, 1_000_000)
    cache.close(10)


def test_a_budget_that_nobody_set_follows_the_disk(tmp_path: Path, disk: FakeDisk) -> None:
    """A service that was started on a full disk stores once there is room, and says why not."""
    cache = Cache(Budget.of(tmp_path, None, 10**9, 0), wall_s=Clock())
    cache.open_all()
    store = open_store(cache)
    assert refused(cache, store) == "NO_ROOM"
    assert messages.stat(cache).total.problem.reason == "NO_ROOM"
    disk.free = 5 * 10**9
    House(cache).tick()
    assert cache.budget.budget_bytes == pytest.approx(2 * 10**9, rel=0.01)
    cache.make_room(store, 100_000)
    assert not messages.stat(cache).total.HasField("problem")
    cache.close(10)


def test_others_that_fill_the_disk_evict_nothing(tmp_path: Path, disk: FakeDisk) -> None:
    """A default budget that shrinks, also over a restart, keeps what is stored and its place."""
    disk.free = 10**9
    cache = Cache(Budget.of(tmp_path, None, 0, 0), fresh_s=0, wall_s=Clock())
    cache.open_all()
    store = open_store(cache)
    chain(store, 400, size=200_000)
    assert store.writer.flush(10)
    used = cache.used_bytes()
    disk.free = 17_000_000  # half of which is less than what is stored
    for _ in range(3):
        House(cache).tick()
        cache.make_room(store, 1000)
    assert cache.used_bytes() == used
    assert used < cache.budget.budget_bytes < 1.2 * used
    cache.close(10)
    again = Cache(Budget.of(tmp_path, None, 0, 0), fresh_s=0, wall_s=Clock())
    again.open_all()
    store = open_store(again)
    again.make_room(store, 1000)
    assert again.used_bytes() == used
    for seed in range(2, 40):  # what comes takes the place of others, and the cache does not grow
        again.make_room(store, 2_000_000)
        chain(store, 10, seed=seed, size=200_000)
        House(again).tick()
    assert again.used_bytes() < 1.2 * used
    assert again.budget.budget_bytes > 0.8 * used
    before = store.counters.evictions
    disk.free = 10**9  # noticed before anything goes for what comes
    again.make_room(store, 20_000_000)
    assert store.counters.evictions == before
    again.close(10)


@pytest.mark.parametrize("what", ["folder", "all", "file", "cut", "other"])
def test_a_file_that_goes_is_a_miss_and_begun_anew(cache: Cache, what: str) -> None:
    """Deleted, replaced or cut short while it is open, a store is closed and another begun."""
    store = open_store(cache)
    (number,) = cache.stores
    nodes = chain(store, 5, checkpoints=[5], size=100_000)
    tokens = prompt(nodes, store)
    assert store.writer.flush(10)
    cache.lease(store, nodes[-1])
    file = store.folder / "data.mdb"
    match what:
        case "folder":
            shutil.rmtree(store.folder)
        case "all":
            shutil.rmtree(cache.budget.folder)
        case "file":
            file.unlink()
        case "cut":
            with file.open("r+b") as opened:
                opened.truncate(file.stat().st_size // 2)
        case "other":
            shutil.copy(file, file.with_suffix(".copy"))
            file.with_suffix(".copy").replace(file)
    with pytest.raises(NotFoundError):
        cache.store(number)
    with capture_logs() as logs:
        assert messages.stat(cache).lost_stores == 1
    assert [entry["event"] for entry in logs if entry["log_level"] == "error"] != []
    assert cache.stores == {} and cache.leases() == []
    with pytest.raises(NotFoundError):
        store.read(nodes[0], Kind.BLOCK)
    with pytest.raises(NotFoundError):
        cache.make_room(store, 1000)
    fresh = open_store(cache)
    found = find(cache, fresh, "", tokens, 0, 0)
    assert found.resume_tokens == (640 if what == "other" else 0)
    chain(fresh, 5, checkpoints=[5], size=100_000)
    assert fresh.writer.flush(10)
    assert find(cache, fresh, "", tokens, 0, 0).resume_tokens == 640
    House(cache).tick()
    assert cache.lost_stores == 1


def test_a_store_that_could_not_be_opened_is_kept_and_tried_again(
    cache: Cache, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk at the start costs no store: it is not cleared away, and opened when it can."""
    chain(store, 3, checkpoints=[3])
    cache.close(10)

    def full(self: Path, mode: int = 0o666, exist_ok: bool = True) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(self))

    with monkeypatch.context() as patched:
        patched.setattr(Path, "touch", full)
        again = open_cache(cache.budget.folder)
    assert again.stores == {} and again.aside() == []
    again.delete_aside()
    House(again).tick()
    (opened,) = again.stores.values()
    assert len(opened.index.nodes) == 3
    again.close(10)
