"""What keeps the engine honest: it trips, it is watched, and it does not run out of memory."""

import asyncio
import threading
import time
from array import array
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from ds4_daemon.engine.events import Ended, Events, Generated
from ds4_daemon.engine.loop import Engine
from ds4_daemon.engine.memory import SPARE_BYTES, Memory, state_bytes
from ds4_daemon.engine.prefix import Prefixes
from ds4_daemon.engine.watchdog import Pulse, finding, watch
from ds4_daemon.errors import DaemonError, OverloadedError
from ds4_daemon.kvlink.layout import Layout
from ds4_daemon.sched.policy import Limits
from ds4_daemon.sched.sampling import Sampling
from ds4_daemon.sched.sequence import Client, Finish, Sequence

from tests.passes import UnitPass

LAYOUT = Layout((4, 128), 32, 8, 16, 127)


class Model:
    """Says 1 for ever. `fault` is raised by each step; `gate` holds steps up while it is clear."""

    device, dtype, rounding, weights_bytes = "cpu", "f32", True, 0

    def __init__(self) -> None:
        self.fault: Exception | None = None
        self.fails: Callable[[Any], bool] = lambda segment: False
        self.gate = threading.Event()
        self.gate.set()
        self.unit_s = 0.0
        self.forwards: list[float] = []

    def new_state(self) -> Any:
        return SimpleNamespace(length=0, nbytes=8, torn=False, layers=[])

    def begin(self, batch: Any) -> UnitPass:
        return UnitPass(lambda: self._rows(batch), 8, self.unit_s)

    def forward(self, batch: Any) -> list[np.ndarray | None]:
        self.forwards.append(time.monotonic())
        return self._rows(batch)

    def _rows(self, batch: Any) -> list[np.ndarray | None]:
        self.gate.wait(20)
        if self.fault is not None:
            raise self.fault
        if any(map(self.fails, batch)):
            raise ValueError("that prompt")
        for segment in batch:
            segment.state.length += len(segment.ids)
        row = np.zeros(4, np.float32)
        row[1] = 1
        return [row for _ in batch]


def sequence(name: str, prompt: int = 3, tokens: int = 4, **more: Any) -> Sequence:
    return Sequence(name, array("i", [0] * prompt), Sampling(), tokens, **more)


async def end(events: Events) -> Ended:
    while True:
        event = await asyncio.wait_for(events.get(), 10)
        if isinstance(event, Ended):
            return event


async def first_token(events: Events) -> None:
    while not isinstance(await asyncio.wait_for(events.get(), 10), Generated):
        pass


def with_engine(
    body: Callable[[Engine, Model], Awaitable[None]],
    memory: Memory | None = None,
    fails: Callable[[Any], bool] = lambda segment: False,
) -> None:
    def reuse(model: Any, engine: Engine) -> Prefixes:
        return Prefixes(model.new_state)

    async def main() -> None:
        model = Model()
        model.fails = fails
        engine = Engine(lambda: model, Limits(8, 512), 50, reuse, memory=memory)
        await engine.start(0)
        try:
            await body(engine, model)
        finally:
            model.gate.set()
            await engine.close(5)

    asyncio.run(main())


def test_three_failed_steps_trip_the_engine() -> None:
    """It fails what is open, refuses what comes, and says what the last step said."""

    async def body(engine: Engine, model: Model) -> None:
        model.fault = ValueError("a chip burned")
        for i in range(2):
            assert (await end(engine.submit(sequence(f"{i}")))).finish is Finish.ERROR
            assert engine.serves
        await end(engine.submit(sequence("third")))
        assert engine.problem is not None
        assert engine.problem.reason == "ENGINE_TRIPPED"
        assert "a chip burned" in engine.problem.message
        assert (engine.state, engine.serves) == ("failed", False)
        model.fault = None
        with pytest.raises(DaemonError) as refused:
            engine.submit(sequence("late"))
        assert refused.value.reason == "ENGINE_TRIPPED"
        assert not engine.died.is_set()

    with_engine(body)


def test_requests_that_fail_again_and_again_trip_nothing() -> None:
    """One sent five times and five that differ fail, each alone, while the model is sound."""

    async def body(engine: Engine, model: Model) -> None:
        for prompts in ([7] * 5, [8, 9, 10, 11, 12]):
            for i, prompt in enumerate(prompts):
                ended = await end(engine.submit(sequence(f"{i}", prompt=prompt)))
                assert ended.finish is Finish.ERROR
            assert engine.totals.failed_steps_in_a_row == 5
            assert engine.serves
            assert (await end(engine.submit(sequence("good")))).finish is Finish.LENGTH
            assert engine.totals.failed_steps_in_a_row == 0

    with_engine(body, fails=lambda segment: 7 <= len(segment.ids) <= 12)


def test_a_model_that_fails_on_every_prompt_trips_the_engine() -> None:
    """That it can decode a token is not enough: nobody would get an answer."""

    async def body(engine: Engine, model: Model) -> None:
        for i in range(3):
            assert (await end(engine.submit(sequence(f"{i}", prompt=7 + i)))).error is not None
        assert engine.problem is not None
        assert engine.problem.reason == "ENGINE_TRIPPED"

    with_engine(body, fails=lambda segment: len(segment.ids) > 1)


def test_no_memory_ends_one_request_and_trips_nothing() -> None:
    """A step without memory is the request's end, with that reason, however often it happens."""

    async def body(engine: Engine, model: Model) -> None:
        model.fault = MemoryError()
        for i in range(4):
            ended = await end(engine.submit(sequence(f"{i}")))
            assert ended.error is not None
            assert ended.error.reason == "OUT_OF_MEMORY"
        model.fault = None
        assert (await end(engine.submit(sequence("good")))).finish is Finish.LENGTH
        assert engine.serves

    with_engine(body)


def test_what_the_watchdog_finds() -> None:
    """Only what is longer than the limit and many times the expected; and waiting for nothing."""
    pulse = Pulse(busy_since_s=100.0, expected_s=5.0, progress_s=100.0)
    assert finding(pulse, 1, 149.0, 30.0) is None
    stuck = finding(pulse, 1, 151.0, 30.0)
    assert stuck is not None
    assert stuck.reason == "ENGINE_STUCK"
    pulse.expected_s = 0.0
    assert finding(pulse, 1, 129.0, 30.0) is None
    assert finding(pulse, 1, 131.0, 30.0) is not None
    idle = Pulse(progress_s=100.0)
    assert finding(idle, 0, 1000.0, 30.0) is None, "truly idle"
    assert finding(idle, 1, 129.0, 30.0) is None
    stalled = finding(idle, 1, 131.0, 30.0)
    assert stalled is not None
    assert stalled.reason == "ENGINE_STALLED"


def test_a_stuck_step_is_told_and_taken_back() -> None:
    """Health says NOT_SERVING while a step hangs, status why, and SERVING when it goes on."""

    async def body(engine: Engine, model: Model) -> None:
        told: asyncio.Queue[bool] = asyncio.Queue()
        watching = asyncio.create_task(watch(engine, told.put, 0.2, interval_s=0.02))
        model.gate.clear()
        events = engine.submit(sequence("r"))
        assert await asyncio.wait_for(told.get(), 10) is False
        assert engine.problem is not None
        assert engine.problem.reason == "ENGINE_STUCK"
        model.gate.set()
        assert (await end(events)).finish is Finish.LENGTH
        assert await asyncio.wait_for(told.get(), 10) is True
        assert engine.problem is None
        watching.cancel()

    with_engine(body)


def test_others_decode_between_the_slices_of_a_chunk() -> None:
    """A stream goes on while one chunk of another's prompt is computed, and progress is told."""

    async def body(engine: Engine, model: Model) -> None:
        stream = engine.submit(sequence("stream", 1, 10_000, client=Client("a")))
        await asyncio.wait_for(stream.get(), 10)
        model.unit_s = 0.02
        before = len(model.forwards)
        long = sequence("long", 500, 1, client=Client("b"))
        events = engine.submit(long)
        seen = set()
        while events.empty():
            seen.add(long.prefilled_tokens)
            await asyncio.sleep(0.005)
        assert len(model.forwards) - before >= 7, "one decode step beside each of eight units"
        assert len(seen) > 3
        assert max(seen) < 500

    with_engine(body)


def test_a_cancel_acts_between_slices() -> None:
    """A chunk that would take long is left at its next slice."""

    async def body(engine: Engine, model: Model) -> None:
        model.unit_s = 0.3
        events = engine.submit(sequence("long", 500))
        await asyncio.sleep(0.1)
        engine.cancel("long")
        assert (await end(events)).finish is Finish.CANCELLED
        assert engine.totals.prefilled_tokens == 0

    with_engine(body)


def test_a_request_that_can_never_fit_is_refused() -> None:
    """Its need and the budget are told; one that fits runs."""
    most = state_bytes(LAYOUT, 2000)

    async def body(engine: Engine, model: Model) -> None:
        engine.memory.layout, engine.memory.limit_bytes = LAYOUT, most
        with pytest.raises(OverloadedError) as refused:
            engine.submit(sequence("large", 3000, 10))
        assert refused.value.reason == "NEVER_FITS_MEMORY"
        assert (await end(engine.submit(sequence("small", 1000, 10)))).finish is Finish.LENGTH

    with_engine(body)


def test_requests_wait_for_memory() -> None:
    """Of two that do not fit together the second starts when the first has ended."""
    need = state_bytes(LAYOUT, 1100)

    async def body(engine: Engine, model: Model) -> None:
        engine.memory.layout, engine.memory.limit_bytes = LAYOUT, need + need // 2
        first, second = sequence("1", 1000, 100), sequence("2", 1000, 100)
        queues = [engine.submit(s) for s in (first, second)]
        await first_token(queues[0])
        assert second.started_s is None
        await asyncio.gather(*map(end, queues))
        assert second.started_s is not None
        assert first.last_token_s is not None
        assert second.started_s >= first.last_token_s

    with_engine(body)


def test_answers_that_outgrow_the_memory_end_the_last_one() -> None:
    """The request that began last ends with a reason; the other one goes on."""

    async def body(engine: Engine, model: Model) -> None:
        first, second = sequence("1", 1, 10_000), sequence("2", 1, 10_000)
        queues = [engine.submit(first), engine.submit(second)]
        await first_token(queues[1])
        engine.memory.limit_bytes = 12  # each state says that it has 8
        ended = await end(queues[1])
        assert ended.error is not None
        assert ended.error.reason == "OUT_OF_MEMORY"
        engine.cancel("1")
        assert (await end(queues[0])).finish is Finish.CANCELLED

    with_engine(body)


def test_headroom_is_the_smaller_of_books_and_system() -> None:
    """What running requests will take is not free, idle sessions are, and the system has a say."""
    memory = Memory(None, lambda: 2 * SPARE_BYTES)
    memory.settle(LAYOUT)
    assert memory.limit_bytes == int(1.6 * SPARE_BYTES)
    assert memory.headroom_bytes(0, 0, 0) == SPARE_BYTES
    assert memory.headroom_bytes(100, 60, 20) == SPARE_BYTES - 40
    assert memory.headroom_bytes(memory.limit_bytes - 5, 0, 0) == 5
    assert memory.headroom_bytes(2 * memory.limit_bytes, 0, 0) == 0


def test_the_wait_of_a_request_is_foretold() -> None:
    """With measured speeds each phase has an estimate; a place in the queue makes it longer."""

    async def body(engine: Engine, model: Model) -> None:
        one = sequence("new", 2000)
        assert engine.estimate_s(one) is None
        engine.rates.prefilled(0, 512, 0.512)
        engine.rates.decoded(1, 0.01)
        assert engine.estimate_s(one) == pytest.approx(2.0)
        assert engine.estimate_s(one, 1000) == pytest.approx(1.0)
        stream = engine.submit(sequence("stream", 1, 10_000))
        await first_token(stream)
        beside = engine.estimate_s(one)
        assert beside is not None
        assert beside > 3.0

    with_engine(body)
