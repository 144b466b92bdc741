"""The threads on which the services read, compress and wait, so that the event loop never does."""

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

_T = TypeVar("_T")


class Workers:
    """Two pools: `quick` for records, one thread a core; `patient` for what may wait for a disk."""

    def __init__(self) -> None:
        # zstd, CRC and LMDB release the GIL, so a thread a core keeps all cores busy; more than 8
        # would only wait for memory.
        self.count = min(os.cpu_count() or 1, 8)
        self._quick = ThreadPoolExecutor(self.count, thread_name_prefix="record")
        self._patient = ThreadPoolExecutor(16, thread_name_prefix="patient")

    def quick(self, work: Callable[[], _T]) -> "asyncio.Future[_T]":
        return asyncio.get_running_loop().run_in_executor(self._quick, work)

    def patient(self, work: Callable[[], _T]) -> "asyncio.Future[_T]":
        return asyncio.get_running_loop().run_in_executor(self._patient, work)

    def close(self) -> None:
        """Wait for what runs."""
        self._patient.shutdown()
        self._quick.shutdown()
