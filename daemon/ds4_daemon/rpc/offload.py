"""Rendering and encoding, off the event loop: a long prompt takes seconds and must hold up nobody.

Owns two lanes, so that a short request never waits for a long prompt's encoding, and the bound on
how many wait. Its threads are daemons: a process that stops does not wait for them. Called by
`inference`.
"""

import asyncio
import contextlib
import threading
from collections.abc import Callable
from functools import partial
from typing import TypeVar

from ds4_daemon.errors import OverloadedError

# A request of this size encodes in a tenth of a second; larger ones take turns, one at a time.
_LONG_BYTES = 200_000
_SHORT_THREADS = 2

_Result = TypeVar("_Result")


class Offload:
    """Runs functions on threads, at most `capacity` of them at work or waiting."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._waiting = 0
        self._short = asyncio.Semaphore(_SHORT_THREADS)
        self._long = asyncio.Semaphore(1)

    async def run(self, size_bytes: int, call: Callable[[], _Result]) -> _Result:
        """What `call` returns or raises. Raises OverloadedError when too many wait."""
        if self._waiting >= self._capacity:
            raise OverloadedError(
                "QUEUE_FULL",
                f"{self._capacity} requests wait already",
                "try again later, or raise max_waiting in the daemon's settings",
            )
        self._waiting += 1
        try:
            lane = self._long if size_bytes > _LONG_BYTES else self._short
            await lane.acquire()
        finally:
            self._waiting -= 1
        return await self._on_thread(lane, call)

    async def _on_thread(self, lane: asyncio.Semaphore, call: Callable[[], _Result]) -> _Result:
        loop = asyncio.get_running_loop()
        done: asyncio.Future[_Result] = loop.create_future()

        def conclude(deliver: Callable[[], None]) -> None:
            lane.release()  # when the thread ends, also if nobody waits for it any more
            if not done.cancelled():
                deliver()

        def work() -> None:
            try:
                deliver = partial(done.set_result, call())
            except BaseException as error:  # noqa: BLE001 (raised again where it is awaited)
                deliver = partial(done.set_exception, error)
            with contextlib.suppress(RuntimeError):  # the loop may be gone by now
                loop.call_soon_threadsafe(conclude, deliver)

        threading.Thread(target=work, name="text", daemon=True).start()
        return await done
