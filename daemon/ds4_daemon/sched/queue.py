"""Where sequences wait for the engine, in the order of their turns, and never more than its limits.

Owns their order, which the engine tells it (`arrange`). `rpc` puts from the event loop, the engine
takes from its own thread, so each method holds the lock for its short while. Does not know why the
engine takes whom it takes.
"""

import threading
from collections.abc import Callable, Iterable

from ds4_daemon.errors import OverloadedError
from ds4_daemon.sched.sequence import Sequence


class WaitingRoom:
    """A bounded queue of sequences in state WAITING."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._waiting: list[Sequence] = []
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def waiting(self) -> list[Sequence]:
        """All of them, whose turn it is first."""
        with self._lock:
            return list(self._waiting)

    def put(self, sequence: Sequence, most_of_client: int | None = None) -> None:
        """Add it at the end. Raises OverloadedError when the room or the client's part is full."""
        with self._lock:
            if len(self._waiting) >= self.capacity:
                raise OverloadedError(
                    "QUEUE_FULL",
                    f"{self.capacity} requests wait already",
                    "try again later, or raise max_waiting in the daemon's settings",
                )
            name = sequence.client.name
            if most_of_client is not None:
                own = sum(other.client.name == name for other in self._waiting)
                if own >= most_of_client:
                    raise OverloadedError(
                        "CLIENT_QUEUE_FULL",
                        f"{own} requests of the client {name!r} wait already",
                        "try again later, or raise its max_waiting in the daemon's settings",
                    )
            self._waiting.append(sequence)

    def arrange(self, ordered: Iterable[Sequence]) -> None:
        """Take over this order; who came meanwhile stays at the end."""
        place = {id(sequence): i for i, sequence in enumerate(ordered)}
        with self._lock:
            self._waiting.sort(key=lambda s: place.get(id(s), len(place)))

    def take(self, wanted: Iterable[Sequence]) -> list[Sequence]:
        """Remove and return those of `wanted` that still wait, in the room's order."""
        names = {id(sequence) for sequence in wanted}
        return self.remove_if(lambda sequence: id(sequence) in names)

    def remove_if(self, unwanted: Callable[[Sequence], bool]) -> list[Sequence]:
        """Remove and return those that need not wait any longer."""
        removed: list[Sequence] = []
        kept: list[Sequence] = []
        with self._lock:
            # One verdict each: a second look might differ, for `stop` is called from any thread.
            for sequence in self._waiting:
                (removed if unwanted(sequence) else kept).append(sequence)
            self._waiting = kept
        return removed

    def before(self, sequence: Sequence) -> list[Sequence]:
        """Those that wait and go before it; none also when it waits no more."""
        with self._lock:
            for place, other in enumerate(self._waiting):
                if other is sequence:
                    return self._waiting[:place]
            return []

    def position(self, sequence: Sequence) -> int:
        """How many wait before it; 0 also when it waits no more."""
        return len(self.before(sequence))
