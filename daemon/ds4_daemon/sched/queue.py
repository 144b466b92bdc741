"""Where sequences wait for the engine: first come, first served, and never more than its limit.

Owns their order. `rpc` puts from the event loop, the engine takes from its own thread, so each
method holds the lock for its short while. Does not know why the engine takes none.
"""

import threading
from collections import deque
from collections.abc import Callable

from ds4_daemon.errors import OverloadedError
from ds4_daemon.sched.sequence import Sequence


class WaitingRoom:
    """A bounded queue of sequences in state WAITING."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._waiting: deque[Sequence] = deque()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, sequence: Sequence) -> None:
        """Add it at the end. Raises OverloadedError when the room is full."""
        with self._lock:
            if len(self._waiting) >= self.capacity:
                raise OverloadedError(
                    "QUEUE_FULL",
                    f"{self.capacity} requests wait already",
                    "try again later, or raise max_waiting in the daemon's settings",
                )
            self._waiting.append(sequence)

    def take(self, count: int) -> list[Sequence]:
        """Remove and return the first ones, at most `count`."""
        with self._lock:
            return [self._waiting.popleft() for _ in range(min(count, len(self._waiting)))]

    def remove_if(self, unwanted: Callable[[Sequence], bool]) -> list[Sequence]:
        """Remove and return those that need not wait any longer."""
        removed: list[Sequence] = []
        kept: deque[Sequence] = deque()
        with self._lock:
            # One verdict each: a second look might differ, for `stop` is called from any thread.
            for sequence in self._waiting:
                (removed if unwanted(sequence) else kept).append(sequence)
            self._waiting = kept
        return removed

    def position(self, sequence: Sequence) -> int:
        """How many wait before it; 0 also when it waits no more."""
        with self._lock:
            for place, other in enumerate(self._waiting):
                if other is sequence:
                    return place
            return 0
