"""Rendering and encoding off the event loop: lanes, bounds, and requests that are given up."""

import asyncio
import threading

import pytest
from ds4_daemon.errors import OverloadedError
from ds4_daemon.rpc.offload import Offload

LONG = 1_000_000


def test_a_short_request_does_not_wait_for_a_long_prompt() -> None:
    """While one long prompt is encoded and others queue behind it, short ones pass."""

    async def main() -> None:
        offload, gate = Offload(8), threading.Event()
        long = [asyncio.create_task(offload.run(LONG, gate.wait)) for _ in range(3)]
        assert await asyncio.wait_for(offload.run(10, lambda: "short"), 5) == "short"
        assert not any(task.done() for task in long)
        gate.set()
        assert all(await asyncio.wait_for(asyncio.gather(*long), 5))

    asyncio.run(main())


def test_no_more_wait_than_there_is_room_for() -> None:
    """One waits, the next is refused, and room that was left is given again."""

    async def main() -> None:
        offload, gate = Offload(1), threading.Event()
        running = asyncio.create_task(offload.run(LONG, gate.wait))
        await asyncio.sleep(0)
        waiting = asyncio.create_task(offload.run(LONG, gate.wait))
        await asyncio.sleep(0)
        with pytest.raises(OverloadedError):
            await offload.run(LONG, gate.wait)
        gate.set()
        assert all(await asyncio.gather(running, waiting))
        assert await offload.run(LONG, lambda: 7) == 7

    asyncio.run(main())


def test_what_is_given_up_keeps_its_turn_until_it_ends() -> None:
    """A cancelled encoding still runs, so the next one waits for its thread."""

    async def main() -> None:
        offload, gate = Offload(4), threading.Event()
        given_up = asyncio.create_task(offload.run(LONG, gate.wait))
        await asyncio.sleep(0.01)
        given_up.cancel()
        following = asyncio.create_task(offload.run(LONG, lambda: "next"))
        await asyncio.sleep(0.05)
        assert not following.done()
        gate.set()
        assert await asyncio.wait_for(following, 5) == "next"

    asyncio.run(main())


def test_errors_come_back() -> None:
    """What the function raises is raised where it is awaited."""

    def fail() -> None:
        raise ValueError("no")

    async def main() -> None:
        with pytest.raises(ValueError, match="no"):
            await Offload(4).run(10, fail)

    asyncio.run(main())
