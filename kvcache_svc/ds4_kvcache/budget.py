"""How many bytes the cache may take and may write: budget, free-space floor, daily writes.

Owns the defaults and the arithmetic; knows neither stores nor records. Called by `cache`.
"""

import contextlib
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

_GB = 1_000_000_000
_MAX_DEFAULT_BUDGET = 64 * _GB  # some 17 million tokens of V4 Flash
_MAX_DEFAULT_FLOOR = 20 * _GB
_HOUR_S = 3600


@dataclass(frozen=True, slots=True)
class Budget:
    """Limits in bytes, and the folder whose disk they are about."""

    folder: Path
    budget_bytes: int
    free_floor_bytes: int
    daily_write_bytes: int  # 0: no limit

    @classmethod
    def of(
        cls, folder: Path, budget_bytes: int | None, floor_bytes: int | None, daily_bytes: int
    ) -> "Budget":
        """Limits as set, the others from the disk: half of what is free or taken by the cache."""
        usage = shutil.disk_usage(folder)
        taken = sum(file.stat().st_size for file in folder.rglob("*.mdb"))
        floor = min(usage.total // 10, _MAX_DEFAULT_FLOOR) if floor_bytes is None else floor_bytes
        budget = budget_bytes
        if budget is None:
            budget = min(max(usage.free + taken - floor, 0) // 2, _MAX_DEFAULT_BUDGET)
        return cls(folder, budget, floor, daily_bytes)

    def free_bytes(self) -> int:
        return shutil.disk_usage(self.folder).free

    def room_bytes(self, file_bytes: int) -> int:
        """The most that records may take now: the budget, or what fits above the floor.

        Files do not shrink, so pages that they have already can be used again whatever the disk
        has free.
        """
        return min(
            self.budget_bytes, file_bytes + max(self.free_bytes() - self.free_floor_bytes, 0)
        )


class WriteLog:
    """Bytes written in each of the last 24 hours, kept in a small file."""

    def __init__(self, file: Path, wall_s: Callable[[], float] = time.time) -> None:
        self._file = file
        self._wall_s = wall_s
        self._hours: dict[int, int] = {}
        with contextlib.suppress(OSError, ValueError, TypeError, AttributeError, OverflowError):
            self._hours = {int(k): int(v) for k, v in json.loads(file.read_text()).items()}

    def add(self, count_bytes: int) -> None:
        hour = int(self._wall_s() // _HOUR_S)
        self._hours[hour] = self._hours.get(hour, 0) + count_bytes

    def today_bytes(self) -> int:
        """Bytes of the last 24 hours. What a clock that was set back left in the future counts."""
        oldest = int(self._wall_s() // _HOUR_S) - 24
        self._hours = {hour: count for hour, count in self._hours.items() if hour > oldest}
        return sum(self._hours.values())

    def save(self) -> None:
        """Write the file anew; a figure is not worth an error."""
        with contextlib.suppress(OSError):
            fresh = self._file.with_suffix(".new")
            fresh.write_text(json.dumps(self._hours))
            fresh.replace(self._file)
