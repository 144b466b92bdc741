"""An engine that computes on two threads: a prompt beside decode steps, or two prompts at once."""

import asyncio
import threading
from collections.abc import Sequence as Items

import numpy as np
from ds4_daemon.engine.loop import Engine
from ds4_daemon.model.network import Segment
from ds4_daemon.sched.sequence import Finish

from tests.passes import UnitPass
from tests.unit.test_loop import LIMITS, HashNetwork, alone, finish, sequence, with_engine

TWO = LIMITS._replace(threads=2)


def test_two_prompts_are_computed_at_once() -> None:
    """With nobody decoding two prompts go on side by side, and the thread ends with its engine."""
    meet, submitted = threading.Barrier(2, timeout=10), threading.Event()

    async def body(engine: Engine, network: HashNetwork) -> None:
        plain = network.forward

        def forward(batch: Items[Segment]) -> list[np.ndarray | None]:
            if 9 in batch[0].ids:
                meet.wait()  # for the other one
            return plain(batch)

        network.forward = forward  # type: ignore[method-assign]
        held = engine.ask(lambda: submitted.wait(10))
        queues = [engine.submit(sequence(name, [9] * 3, 1)) for name in "ab"]
        submitted.set()
        assert await held
        for events in queues:
            _, ended = await finish(events)
            assert ended.finish is Finish.LENGTH

    with_engine(body, limits=TWO)
    for thread in threading.enumerate():
        if thread.name == "engine-2":
            thread.join(10)
            assert not thread.is_alive()


def test_a_stream_decodes_while_a_unit_of_a_prompt_is_computed() -> None:
    """A decode step and a unit of another's prompt run at the same time: each waits in itself for
    the other one."""
    meet, begun = threading.Barrier(2, timeout=10), threading.Event()

    async def body(engine: Engine, network: HashNetwork) -> None:
        stream = engine.submit(sequence("stream", [1], 10_000))
        await asyncio.wait_for(stream.get(), 10)
        plain = network.forward

        def begin(batch: Items[Segment]) -> UnitPass:
            begun.set()
            return UnitPass(lambda: network.forward(batch), units=1)  # of a slice, one always runs

        def forward(batch: Items[Segment]) -> list[np.ndarray | None]:
            if begun.is_set():
                meet.wait()
                begun.clear()
            return plain(batch)

        network.begin, network.forward = begin, forward  # type: ignore[method-assign]
        _, ended = await finish(engine.submit(sequence("prompt", [9] * 3, 1)))
        assert ended.error is None
        engine.cancel("stream")

    with_engine(body, limits=TWO)


def test_a_cancel_between_two_slices_leaves_the_others() -> None:
    """Of three prompts one is cancelled midway; the others get what they get alone."""
    expected = alone([5] * 400, 5)

    async def body(engine: Engine, network: HashNetwork) -> None:
        dropped = engine.submit(sequence("dropped", [4] * 4_000, 5))
        queues = [engine.submit(sequence(name, [5] * 400, 5)) for name in "ab"]
        await asyncio.wait_for(dropped.get(), 10)
        assert engine.cancel("dropped")
        assert (await finish(dropped))[1].finish is Finish.CANCELLED
        for events in queues:
            ids, ended = await finish(events)
            assert ended.finish is Finish.LENGTH
            assert ids == expected

    with_engine(body, limits=TWO)
