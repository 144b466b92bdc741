"""Prefixes that somebody reads or adds to: they must not go before their lease ends.

The base of `cache`, with the lock that guards every store.
"""

import itertools
import threading
import time
from dataclasses import dataclass

from ds4_kvcache.errors import NotFoundError
from ds4_kvcache.index import Node
from ds4_kvcache.store import Store

# Long enough for a fetch that waits behind a slow disk, short enough that a daemon that died
# holds nothing for long.
LEASE_S = 30.0


@dataclass(slots=True)
class Lease:
    """A prefix that must not go before `until_s` (monotonic)."""

    id: int
    store: Store
    node: Node  # with the checkpoint to resume from
    until_s: float


class Leases:
    """The leases that hold. `lock` guards them, and all stores."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        # No number of a service that ran before means anything to this one.
        self.numbers = itertools.count(time.time_ns() // 1_000_000)
        self._leases: dict[int, Lease] = {}

    def lease(self, store: Store, node: Node) -> Lease:
        with self.lock:
            lease = Lease(next(self.numbers), store, node, time.monotonic() + LEASE_S)
            self._leases[lease.id] = lease
            node.touched_s = time.monotonic()
        return lease

    def follow(self, lease: Lease | None, store: Store, node: Node) -> Lease:
        """A lease that moves on to `node`, a new one where it ended."""
        with self.lock:
            if lease is None or lease.id not in self._leases:
                return self.lease(store, node)
            lease.node, lease.until_s = node, time.monotonic() + LEASE_S
            return lease

    def renew(self, lease_id: int, store: Store) -> Lease:
        """The lease, for another LEASE_S. Raises NotFoundError for one that ended."""
        with self.lock:
            lease = self._leases.get(lease_id)
            if lease is None or lease.store is not store or lease.until_s < time.monotonic():
                raise NotFoundError("NO_SUCH_LEASE", f"the lease {lease_id} ended", "look up again")
            lease.until_s = time.monotonic() + LEASE_S
            return lease

    def release(self, lease_id: int) -> None:
        """Give a lease back; one that ended already is fine."""
        with self.lock:
            self._leases.pop(lease_id, None)

    def leases(self, store: Store | None = None) -> list[Lease]:
        """The leases that hold, of one store or of all."""
        now_s = time.monotonic()
        with self.lock:
            self._leases = {k: v for k, v in self._leases.items() if v.until_s >= now_s}
            return [one for one in self._leases.values() if store in (None, one.store)]

    def release_all(self, store: Store) -> None:
        """End the leases of a store that goes."""
        with self.lock:
            self._leases = {k: v for k, v in self._leases.items() if v.store is not store}
