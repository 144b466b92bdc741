"""Whether the engine does what it should: a look from outside its thread, once a second.

A step that takes many times as long as expected, and open requests that nothing is done for, are
found, told in status and in the health service, and taken back when the engine goes on. Knows
neither the model nor why. Run by `main` on the event loop.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

import structlog

from ds4_daemon.errors import DaemonError, UnavailableError

# A step may be this many times slower than measured, where other processes want the machine.
_TIMES = 10
_INTERVAL_S = 1.0
_HINT = "it is taken back when the engine goes on; otherwise restart the daemon and see its log"

_log = structlog.get_logger()


@dataclass(slots=True)
class Pulse:
    """Written by the engine's thread. Times are of `time.monotonic`."""

    busy_since_s: float | None = None  # when the present piece of work began; None: it has none
    expected_s: float = 0.0  # what that should take; 0: unknown
    progress_s: float = 0.0  # when a token was decoded or a piece of a prompt computed

    def begin(self, expected_s: float | None) -> None:
        """A piece of work begins."""
        self.expected_s = expected_s or 0.0
        self.busy_since_s = time.monotonic()

    def end(self) -> None:
        """It ended."""
        self.busy_since_s = None


def finding(pulse: Pulse, open_requests: int, now_s: float, limit_s: float) -> DaemonError | None:
    """What is wrong; nothing may take longer than `limit_s` and many times what was expected."""
    since_s = pulse.busy_since_s
    if since_s is not None:
        took_s = now_s - since_s
        if took_s <= max(limit_s, _TIMES * pulse.expected_s):
            return None
        return UnavailableError(
            "ENGINE_STUCK",
            f"a step of the engine runs for {took_s:.0f} s; {pulse.expected_s:.1f} s were expected",
            _HINT,
        )
    if open_requests and now_s - pulse.progress_s > limit_s:
        return UnavailableError(
            "ENGINE_STALLED",
            f"nothing was computed for {now_s - pulse.progress_s:.0f} s, and {open_requests} "
            "requests wait for it",
            _HINT,
        )
    return None


class Watched(Protocol):
    """What the watchdog needs of `engine.loop.Engine`."""

    stalled: DaemonError | None

    def look(self, limit_s: float) -> DaemonError | None: ...

    @property
    def serves(self) -> bool: ...


async def watch(
    engine: Watched,
    set_serving: Callable[[bool], Awaitable[None]],
    limit_s: float,
    interval_s: float = _INTERVAL_S,
) -> None:
    """Look at the engine for as long as this runs, and have the health service say what is found.

    To be begun once the daemon serves.
    """
    serving = True
    while True:
        found = engine.look(limit_s)
        if (found is None) != (engine.stalled is None):
            if found is not None:
                _log.error("engine stands still", reason=found.reason, why=found.message)
            else:
                _log.info("engine goes on")
        engine.stalled = found
        if serving != engine.serves:
            serving = engine.serves
            await set_serving(serving)
        await asyncio.sleep(interval_s)
