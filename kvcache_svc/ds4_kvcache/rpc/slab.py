"""Shared memory of daemons, into which restored records are laid: half the work of sending them.

A slab is a POSIX shared memory object that a daemon made, 0600. It is mapped by the first fetch
that names it and kept until the restore has ended, because the daemon takes its name away at once:
so nothing is left behind by whoever dies. Used by `fetch`; safe for threads.
"""

import mmap
import threading
import time
from collections import OrderedDict

from ds4_runtime import shared_memory

from ds4_kvcache.errors import NotFoundError, RequestError

# One daemon has two; what is not used for a minute belongs to a restore that broke off.
_MOST, _IDLE_S = 8, 60.0


class Slabs:
    """The slabs that are mapped now."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._maps: OrderedDict[str, tuple[mmap.mmap, float]] = OrderedDict()

    def window(self, name: str, offset: int, size: int) -> memoryview:
        """The part of a slab that may be written. Raises NotFoundError, RequestError."""
        with self._lock:
            found = self._maps.get(name)
            mapped = found[0] if found else _attach(name)
            self._maps[name] = (mapped, time.monotonic())
            self._maps.move_to_end(name)
            while len(self._maps) > _MOST:
                self._maps.popitem(last=False)
        if offset + size > len(mapped):
            raise RequestError(
                "BAD_SLAB", f"the slab has {len(mapped)} bytes, not {offset + size}", ""
            )
        return memoryview(mapped)[offset : offset + size]

    def forget(self, name: str) -> None:
        """Let go of a slab whose restore ended."""
        with self._lock:
            self._maps.pop(name, None)

    def forget_idle(self) -> None:
        """Let go of slabs that nobody used for a while; a view that is in use keeps its own."""
        with self._lock:
            for name, (_, used_s) in list(self._maps.items()):
                if time.monotonic() - used_s > _IDLE_S:
                    del self._maps[name]


def _attach(name: str) -> mmap.mmap:
    try:
        return shared_memory.attach(name)
    except (ValueError, PermissionError) as error:
        raise RequestError("BAD_SLAB", f"{error}", "use /ds4- and 16 hexadecimal digits") from error
    except OSError as error:
        raise NotFoundError(
            "NO_SUCH_SLAB", f"the slab {name} cannot be opened: {error.strerror}", "make a new one"
        ) from error
