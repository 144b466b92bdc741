"""What nobody waits for: ended pins and leases, figures, the slow check, files with holes.

`main` calls it every few seconds, off the event loop. It does the larger things only while nothing
is restored and nothing waits to be written.
"""

import structlog

from ds4_kvcache import pins
from ds4_kvcache.cache import Cache
from ds4_kvcache.check import Scrub
from ds4_kvcache.store import Store

# Thinning reads the whole tree; steps of the lattice are thinned after an hour.
_TICKS_TO_THIN = 60
# A file that is a quarter free pages is written anew; a small one is not worth it.
_FREE_SHARE, _FREE_BYTES = 0.25, 64_000_000

_log = structlog.get_logger()


class House:
    """Keeps one cache tidy."""

    def __init__(self, cache: Cache) -> None:
        self._cache = cache
        self._scrub = Scrub(cache)
        self._ticks = 0

    def tick(self) -> None:
        """A round of everything that is due."""
        cache = self._cache
        self._ticks += 1
        cache.follow_clock()
        pins.end_pins(cache)
        cache.retire_broken()
        cache.follow_disk()
        cache.open_rest()
        cache.count_writes()
        cache.writes.save()
        if self._ticks % _TICKS_TO_THIN == 0:
            cache.thin()
        self._scrub.tick()
        for number, store in list(cache.stores.items()):
            if store.writer.idle and not cache.leases(store):
                self._tidy(number, store)

    def _tidy(self, number: int, store: Store) -> None:
        if not store.index.nodes and not store.opened:
            # All of a model that is used no more was evicted.
            _log.info("empty store deleted", folder=store.folder.name)
            self._cache.delete(number)
            return
        with store.reading():
            stat = store.disk.stat()
        free = stat.file_bytes - stat.used_bytes
        room = self._cache.budget.free_bytes() - self._cache.budget.free_floor_bytes
        if free > max(_FREE_SHARE * stat.file_bytes, _FREE_BYTES) and stat.used_bytes < room:
            before, after = store.compact()
            _log.info("store compacted", folder=store.folder.name, before=before, after=after)
