"""Memory for restored sessions: that of one which ended is the next one's.

A session of 100k tokens has 1.4 GB. The system hands them out as zeros, which takes a third of the
time of a restore, and on a virtual machine whose host wants freed memory back, twice that of
all the rest. Sessions are restored in bursts, when several clients take turns, so what one leaves
behind is kept for a minute. Made by `link`, used by `engine`.
"""

import threading
import time
import weakref

import numpy as np
from numpy.typing import NDArray

IDLE_S = 60.0
# Of V4's rows 140,000 tokens. More is given back at once: it is memory that others may need.
_MOST_BYTES = 2_000_000_000
# What is taken may be so many times larger than what is wanted.
_WASTE = 1.5
_CACHE_LINE_BYTES = 64


class _Lent:
    """What every view of lent memory leads back to: when it goes, nobody sees the memory."""

    def __init__(self, memory: NDArray[np.uint8]) -> None:
        self.__array_interface__ = memory.__array_interface__


class Memory:
    """One spare piece at most; safe for threads."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # a piece may come back at any moment, in this very thread
        self._spare: NDArray[np.uint8] | None = None
        self._since_s = 0.0

    @property
    def spare_bytes(self) -> int:
        """Bytes that nobody uses."""
        return 0 if self._spare is None else self._spare.nbytes

    def take(self, size: int) -> NDArray[np.uint8]:
        """`size` bytes with any content, from a cache line on; kept while there is a view."""
        size += _CACHE_LINE_BYTES
        with self._lock:
            memory, self._spare = self._spare, None
        if memory is None or not size <= memory.nbytes <= _WASTE * size:
            memory = None  # before the new one is made
            memory = np.empty(size, np.uint8)
        lent = _Lent(memory)
        view: NDArray[np.uint8] = np.asarray(lent)
        weakref.finalize(lent, self._back, memory).atexit = False
        start = -memory.ctypes.data % _CACHE_LINE_BYTES
        return view[start : start + size - _CACHE_LINE_BYTES]

    def _back(self, memory: NDArray[np.uint8]) -> None:
        if memory.nbytes > _MOST_BYTES:
            return
        with self._lock:
            if memory.nbytes > self.spare_bytes:
                self._spare = memory
            self._since_s = time.monotonic()

    def forget_idle(self, idle_s: float = IDLE_S) -> None:
        """Give back what nobody used for so long."""
        with self._lock:
            if time.monotonic() - self._since_s >= idle_s:
                self._spare = None
