"""How many bytes the cache may take and may write: budget, free-space floor, daily writes.

Owns the defaults and the arithmetic; knows neither stores nor records. Called by `cache`.
"""

import contextlib
import json
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

_GB = 1_000_000_000
_MAX_DEFAULT_BUDGET = 64 * _GB  # some 17 million tokens of V4 Flash
_MAX_DEFAULT_FLOOR = 20 * _GB
_HOUR_S = 3600

# Eviction begins at the first and stops at the second: in one go, not at every record.
HIGH_WATER, LOW_WATER = 0.95, 0.90
# Of a budget that only keeps what is stored, that much is taken when it starts: between the two
# marks, so that starting again and again neither evicts nor grows. While it runs the budget
# shrinks when less is taken: just below the low mark, where every eviction ends, must not count.
_TAKEN_AT_START, _TAKEN_AT_LEAST = 0.925, 0.85


@dataclass(slots=True)
class Budget:
    """Limits in bytes, and the folder whose disk they are about."""

    folder: Path
    budget_bytes: int
    free_floor_bytes: int
    daily_write_bytes: int  # 0: no limit
    follows_disk: bool = False  # nobody set `budget_bytes`

    @classmethod
    def of(
        cls, folder: Path, budget_bytes: int | None, floor_bytes: int | None, daily_bytes: int
    ) -> "Budget":
        """Limits as set, the others from the disk."""
        total = shutil.disk_usage(folder).total
        floor = min(total // 10, _MAX_DEFAULT_FLOOR) if floor_bytes is None else floor_bytes
        budget = cls(folder, budget_bytes or 0, floor, daily_bytes, budget_bytes is None)
        budget.follow_disk(0)
        return budget

    @property
    def most_bytes(self) -> int:
        """The most that `budget_bytes` can become."""
        return _MAX_DEFAULT_BUDGET if self.follows_disk else self.budget_bytes

    def follow_disk(self, used_bytes: int, *, starting: bool = False) -> None:
        """Work out a budget that nobody set: half of what is free or taken by the cache.

        Where others fill the disk the cache stops growing, and keeps the `used_bytes` that it has:
        what comes takes the place of what is worth less, and nothing goes without need.
        `starting`: what the budget was before is not known.
        """
        if not self.follows_disk:
            return
        taken = 0
        for file in self.folder.rglob("*.mdb"):
            with contextlib.suppress(FileNotFoundError):
                taken += file.stat().st_size
        half = max(self.free_bytes() + taken - self.free_floor_bytes, 0) // 2
        if starting:
            kept = int(used_bytes / _TAKEN_AT_START)
        else:
            kept = min(int(used_bytes / _TAKEN_AT_LEAST), self.budget_bytes)
        self.budget_bytes = min(max(half, kept), _MAX_DEFAULT_BUDGET)

    def free_bytes(self) -> int:
        """What the disk has free, also where the folder was deleted."""
        folder = self.folder
        while True:
            try:
                return shutil.disk_usage(folder).free
            except FileNotFoundError:
                folder = folder.parent

    def room_bytes(self, file_bytes: int) -> int:
        """The most that records may take now: the budget, or what fits above the floor.

        Files do not shrink, so pages that they have already can be used again whatever the disk
        has free.
        """
        return min(
            self.budget_bytes, file_bytes + max(self.free_bytes() - self.free_floor_bytes, 0)
        )


class WriteLog:
    """Bytes written in each of the last 24 hours, kept in a small file. Safe for threads."""

    def __init__(self, file: Path, wall_s: Callable[[], float] = time.time) -> None:
        self._file = file
        self._wall_s = wall_s
        self._lock = threading.Lock()
        self._hours: dict[int, int] = {}
        self._ahead: dict[int, int] = {}  # of these, what had a date that had not come yet
        with contextlib.suppress(
            OSError, ValueError, TypeError, AttributeError, OverflowError, RecursionError
        ):
            self._hours = {int(k): int(v) for k, v in json.loads(file.read_text()).items()}

    def add(self, count_bytes: int) -> None:
        with self._lock:
            hour = self._settle()
            self._hours[hour] = self._hours.get(hour, 0) + count_bytes

    def today_bytes(self) -> int:
        """Bytes of the last 24 hours."""
        with self._lock:
            self._settle()
            return sum(self._hours.values())

    def ahead_bytes(self) -> int:
        """Of `today_bytes`, those that were written while the clock was ahead."""
        with self._lock:
            self._settle()
            return sum(self._ahead.values())

    def _settle(self) -> int:
        """Forget what is older than a day; the hour that it is.

        What a clock that was ahead left in the future was written before now, nobody knows when:
        it counts as written now, so for a day and not until that future comes.
        """
        hour = int(self._wall_s() // _HOUR_S)
        ahead = sum(self._hours.pop(one) for one in list(self._hours) if one > hour)
        if ahead:
            self._hours[hour] = self._hours.get(hour, 0) + ahead
            self._ahead = {hour: ahead + sum(self._ahead.values())}
        for hours in (self._hours, self._ahead):
            for one in [one for one in hours if one <= hour - 24]:
                del hours[one]
        return hour

    def save(self) -> None:
        """Write the file anew; a figure is not worth an error."""
        with self._lock:
            text = json.dumps(self._hours)
        with contextlib.suppress(OSError):
            fresh = self._file.with_suffix(".new")
            fresh.write_text(text)
            fresh.replace(self._file)
