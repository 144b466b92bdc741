"""How fast saving goes beside steps that run: evenly, so that no client sees it.

Packing and sending share the interpreter, the caches and, where there are few, the cores with the
engine's thread. What a prefill saves comes at once, 18 MB of V4's rows at every step of the
lattice. As fast as it goes, decode steps took 1.7 times as long for a third of a second; in small
parts over some seconds each takes 1.03 times as long. Used by `sender` alone.
"""

import math
import threading
import time
from collections.abc import Callable


class Pace:
    """Of one thread. `rate` is in bytes a second, infinite where nothing is to be spared; `haste`
    ends a pause that is under way."""

    def __init__(self, rate: Callable[[], float], haste: threading.Event) -> None:
        self._rate = rate
        self._haste = haste
        self._next_s = 0.0  # of time.monotonic

    @property
    def slow(self) -> bool:
        """Whether there are pauses now."""
        return self._rate() < math.inf

    def did(self, nbytes: int) -> None:
        """Wait as long as so many bytes may take, less what was worked on them."""
        rate, now_s = self._rate(), time.monotonic()
        if rate < math.inf:
            self._next_s = max(self._next_s, now_s) + nbytes / rate
            self._haste.wait(self._next_s - now_s)
        else:
            self._next_s = now_s
