"""All stores under one budget: opening, room for what comes, and what has to go for it.

It decides whether a record is taken (budget, free space, daily writes) and keeps stores open from
the start, so that every fingerprint counts and can be looked at. It knows no gRPC. Called by `rpc`
and `check`; safe for threads.
"""

import contextlib
import shutil
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

import structlog

from ds4_kvcache import evict
from ds4_kvcache.budget import HIGH_WATER, LOW_WATER, Budget, WriteLog
from ds4_kvcache.clock import ClockWatch, date_anew
from ds4_kvcache.disk import BROKEN, FullError, Kind
from ds4_kvcache.errors import DamagedError, KvError, NotFoundError, RefusedError
from ds4_kvcache.evict import Scene, Victim
from ds4_kvcache.identity import Identity
from ds4_kvcache.leases import Leases
from ds4_kvcache.load import open_store, set_aside
from ds4_kvcache.store import Store
from ds4_kvcache.writer import BATCH_BYTES

# A store may hold a damaged one beside it, and LMDB's map must not end before the budget does.
_MAP_SLACK_BYTES = 1 << 30
_SLOW_DISK_S = 10.0
# With less than this free a transaction may fail. Then nothing is evicted for what would be lost.
_LEAST_FREE_BYTES = 16_000_000
_SOME_RECORD_BYTES = 500_000  # a block of V4 Flash
# Where so much comes that all of the budget is fresh, what is fresh is what came last: in the end
# in the last quarter of a second, and what is being put, for a stream holds a lease.
_FRESH_SHARES = (1.0, 1 / 4, 1 / 16, 1 / 64, 1 / 256)

_log = structlog.get_logger()


class Cache(Leases):
    """Every store in `budget.folder`. `lock` guards them all."""

    def __init__(
        self,
        budget: Budget,
        *,
        fresh_s: float = evict.FRESH_S,
        wall_s: Callable[[], float] = time.time,
    ) -> None:
        super().__init__()
        self.budget = budget
        self.wall_s = wall_s
        self.stores: dict[int, Store] = {}
        self.writes = WriteLog(budget.folder / "written.json", wall_s)
        self.fetch_bytes_s: deque[float] = deque(maxlen=64)
        self.lost_stores = 0  # whose files were deleted or damaged while they were open
        self._clock = ClockWatch(wall_s)
        self._fresh_s = fresh_s
        self._counted: dict[Store, int] = {}
        self._opening = threading.Lock()
        self.aside_bytes = 0  # of stores that were set aside
        self._unopened: list[Path] = []  # folders of stores that may be sound

    # Stores.

    def open_all(self) -> None:
        """Open every store that is on disk; what cannot be opened is set aside."""
        for folder in sorted(self.budget.folder.iterdir()):
            if folder.is_dir() and len(folder.name) == 32 and (folder / "data.mdb").exists():
                error = self._open_found(folder)
                if error is not None:
                    _log.warning("store not opened", folder=folder.name, why=str(error))
        self._weigh_aside()
        self.follow_disk(starting=True)

    def _open_found(self, folder: Path) -> KvError | None:
        try:
            self._open(folder, None)
        except DamagedError as error:
            return error
        except FullError as error:  # no room or no right: nothing is wrong with it
            self._unopened.append(folder)
            return error
        return None

    def open_rest(self) -> None:
        """Try once more to open what could not be opened, unless a daemon did."""
        with self._opening:
            rest, self._unopened = self._unopened, []
            known = {store.folder for store in self.stores.values()}
            for folder in rest:
                if folder not in known and (folder / "data.mdb").exists():
                    self._open_found(folder)

    def aside(self) -> list[Path]:
        """The folders of stores that were set aside, or are of no use to this version."""
        known = {*self._unopened, *(store.folder for store in self.stores.values())}
        with contextlib.suppress(FileNotFoundError):
            found = list(self.budget.folder.iterdir())
            return [one for one in found if one.is_dir() and one not in known]
        return []  # deleted, and not made again yet

    def _weigh_aside(self) -> None:
        files = [file for folder in self.aside() for file in folder.glob("data.mdb")]
        self.aside_bytes = sum(file.stat().st_size for file in files)

    def delete_aside(self) -> None:
        """Delete them. They are the first to go where room is needed."""
        for folder in self.aside():
            shutil.rmtree(folder, ignore_errors=True)
        self._weigh_aside()

    def open(self, identity: Identity, digest: bytes, prefill_tok_s: float) -> tuple[int, Store]:
        """The store of a fingerprint, made where it is new. Raises RequestError, FullError."""
        identity.check(digest)
        self.retire_broken()
        with self._opening:
            known = [item for item in self.stores.items() if item[1].digest == digest]
            if known:
                known[0][1].identity.check_same(identity)
            else:
                known = [self._open(self.budget.folder / digest.hex()[:32], identity)]
            number, store = known[0]
        with self.lock:
            store.opened = True
        store.measured(prefill_tok_s)
        return number, store

    def _open(self, folder: Path, identity: Identity | None) -> tuple[int, Store]:
        map_bytes = int(1.25 * self.budget.most_bytes) + _MAP_SLACK_BYTES
        store = open_store(folder, map_bytes, self.lock, identity, self.wall_s)
        date_anew(store, self.wall_s())
        with self.lock:
            number = next(self.numbers)
            self.stores[number] = store
            self._counted[store] = 0
            self._size_batches()
        return number, store

    def _size_batches(self) -> None:
        # A batch that is large beside the budget would make the file larger than it.
        for store in self.stores.values():
            most = max(self.budget.budget_bytes // 32, 1_000_000)
            store.writer.batch_bytes = min(BATCH_BYTES, most)

    def store(self, number: int) -> Store:
        """The store of a handle. Raises NotFoundError."""
        store = self.stores.get(number)
        if store is None or store.broken:
            raise NotFoundError(
                "NO_SUCH_STORE",
                f"no store has the handle {number}: the service was restarted, or its file went",
                "open it again",
            )
        return store

    def delete(self, number: int) -> None:
        """Delete a store, file and all; nothing is opened in its folder meanwhile."""
        with self._opening:
            if number in self.stores:  # else somebody else was quicker
                shutil.rmtree(self._close(number).folder, ignore_errors=True)

    def retire_broken(self) -> None:
        """Close the stores whose files were damaged, deleted or cut short while they were open.

        A damaged one is set aside; what became of the others is found when they are opened again.
        """
        with self._opening:
            for number, store in list(self.stores.items()):
                with self.lock:  # one that is being compacted looks broken for a moment
                    broken, gone = store.broken, not store.disk.is_there()
                if not broken:
                    continue
                folder = self._close(number).folder
                self.lost_stores += 1
                if gone:
                    _log.error(
                        "store lost: its file was deleted, replaced or cut short",
                        folder=str(folder),
                    )
                else:
                    set_aside(folder, DamagedError(BROKEN, "its pages are damaged"))
                self._weigh_aside()

    def _close(self, number: int) -> Store:
        with self.lock:
            store = self.stores.pop(number)
            self._counted.pop(store)
            self.release_all(store)
        store.close(0.0)
        return store

    def close(self, limit_s: float) -> None:
        """Bring everything to disk and close it."""
        self.count_writes()
        for store in self.stores.values():
            store.close(limit_s)
        self.count_writes()
        self.writes.save()

    # Room.

    def used_bytes(self) -> int:
        """What all records take on disk, those that wait included."""
        return sum(store.index.disk_bytes for store in self.stores.values())

    def file_bytes(self) -> int:
        """Size of all files."""
        return sum(store.disk.file_bytes() for store in list(self.stores.values()))

    def follow_disk(self, *, starting: bool = False) -> None:
        """Have a budget that nobody set follow what the disk has free."""
        with self.lock:
            self.budget.follow_disk(self.used_bytes(), starting=starting)
            self._size_batches()

    def follow_clock(self) -> None:
        """Where the wall clock went back, date anew what was stored and used before."""
        back_s = self._clock.went_back_s()
        if back_s:
            count = sum(date_anew(store, self.wall_s()) for store in list(self.stores.values()))
            _log.warning("the clock went back", seconds=round(back_s), blocks_dated_anew=count)

    def refusal(self, raw_bytes: int = 0) -> KvError | None:
        """Why no record of so many bytes (0: of a usual size) is taken now, whatever it is for."""
        spent, limit = self.writes.today_bytes(), self.budget.daily_write_bytes
        if limit and spent + (raw_bytes or _SOME_RECORD_BYTES) > limit:
            ahead = self.writes.ahead_bytes()
            clock = f", {ahead} of them while the clock was ahead of what it is now"
            return RefusedError(
                "WRITE_BUDGET_SPENT",
                f"{spent} bytes were written in 24 hours{clock if ahead else ''}, and {limit} may",
                "raise daily_write_budget_bytes of ds4-kvcache, or wait",
            )
        room = self.budget.room_bytes(self.file_bytes())
        if room < (raw_bytes or _LEAST_FREE_BYTES):
            return RefusedError(
                "NO_ROOM",
                f"the disk has {self.budget.free_bytes()} bytes free and must keep "
                f"{self.budget.free_floor_bytes}, so the cache may take {room}",
                "make room on its disk, or lower free_floor_bytes of ds4-kvcache",
            )
        return None

    def make_room(self, store: Store, raw_bytes: int) -> None:
        """Let a record of so many bytes come, evicting others. Raises RefusedError.

        Blocks while the disk is far behind.
        """
        if not store.writable:
            raise RefusedError(
                "READ_ONLY",
                "the store only serves what it has: several records were damaged within an hour",
                "check the disk, then `ds4ctl cache verify --repair`, and restart ds4-kvcache",
            )
        problem = store.writer.problem
        if problem is not None:
            raise RefusedError(problem.reason, problem.message, problem.hint)
        if not store.writer.wait_for_room(_SLOW_DISK_S):
            raise RefusedError("DISK_TOO_SLOW", "the disk does not keep up with what comes", "")
        self.count_writes()
        with self.lock:
            store.check_open()
            if (refusal := self.refusal(raw_bytes)) is not None:
                raise refusal
            room = self.budget.room_bytes(self.file_bytes())
            used = self.used_bytes() + self.aside_bytes
            if used + raw_bytes > HIGH_WATER * room:
                self.follow_disk()  # nothing is to go for a budget of ten seconds ago
                room = self.budget.room_bytes(self.file_bytes())
            if used + raw_bytes <= HIGH_WATER * room:
                return
            if self.budget.free_bytes() < _LEAST_FREE_BYTES:
                raise RefusedError(
                    "NO_ROOM",
                    f"the disk has {self.budget.free_bytes()} bytes free, too few to write at all",
                    "make room on its disk",
                )
            self.delete_aside()
            self._evict(evict.thin)
            for share in _FRESH_SHARES:
                need = self.used_bytes() + raw_bytes - int(LOW_WATER * room)
                if need > 0 and (share == 1 or self.used_bytes() + raw_bytes > room):
                    self._drop(evict.plan(self.scenes(share), need))
            if self.used_bytes() + raw_bytes > room:
                raise RefusedError(
                    "BUDGET_FULL",
                    "the budget is full of what is in use, pinned or just written",
                    "raise budget_bytes of ds4-kvcache, make room on its disk, or take pins away",
                )

    def scenes(self, fresh_share: float = 1.0) -> list[Scene]:
        """What eviction plans are made for; under the lock."""
        return [self.scene(store, fresh_share) for store in self.stores.values()]

    def scene(self, store: Store, fresh_share: float = 1.0) -> Scene:
        """A store as eviction sees it; `fresh_share` shortens the time that what is new stays."""
        return Scene(
            store.index,
            self.wall_s(),
            time.monotonic(),
            {lease.node for lease in self.leases(store)},
            store.counters.prefill_tok_s,
            self._fresh_s * fresh_share,
        )

    def thin(self) -> None:
        """Drop checkpoints that are closer together than their age justifies."""
        with self.lock:
            self._evict(evict.thin)

    def _evict(self, choose: Callable[[Scene], list[Victim]]) -> None:
        for scene in self.scenes():
            self._drop(choose(scene))

    def drop(self, victims: list[Victim]) -> None:
        """Evict what was planned; what changed since is left alone."""
        with self.lock:
            self._drop(victims)

    def _drop(self, victims: list[Victim]) -> None:
        owners = {id(store.index): store for store in self.stores.values()}
        count = 0
        for victim in victims:
            store = owners[id(victim.tree)]
            if victim.kind is Kind.CHECKPOINT:
                dropped = store.drop_checkpoint(victim.node)
            else:
                dropped = not victim.node.children and store.forget(victim.node) > 0
            store.counters.evictions += dropped
            count += dropped
        if count:
            _log.info("records evicted", records=count, bytes=sum(v.bytes for v in victims))

    def count_writes(self) -> None:
        """Bring what the writers wrote since the last time into the log of writes."""
        with self.lock:
            for store, before in self._counted.items():
                now = store.writer.written.disk_bytes
                if now > before:
                    self.writes.add(now - before)
                    self._counted[store] = now
