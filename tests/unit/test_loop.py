"""The engine's loop over a tiny model whose next token depends on all tokens before it."""

import asyncio
import gc
import threading
import time
import weakref
from array import array
from collections.abc import Awaitable, Callable
from collections.abc import Sequence as Items
from typing import Any

import numpy as np
import pytest
from ds4_daemon.engine.loop import Ended, Engine, Events, Generated
from ds4_daemon.errors import DaemonError, EngineError, OverloadedError, RequestError
from ds4_daemon.model.network import Segment, Want
from ds4_daemon.sched.policy import Limits
from ds4_daemon.sched.sampling import Sampling
from ds4_daemon.sched.sequence import Finish, Sequence

from tests.passes import UnitPass

VOCAB = 50
LIMITS = Limits(max_running=8, chunk_tokens=4)
POISON = 49  # a batch that holds this id raises
NAN = 48  # a sequence that holds this id gets logits that are no numbers


class Memory:
    """A session: all tokens so far."""

    def __init__(self) -> None:
        self.tokens: tuple[int, ...] = ()
        self.length = 0
        self.nbytes = 8


class HashNetwork:
    """Logits are drawn from a generator keyed by the hash of the whole sequence."""

    device = "cpu"
    dtype = "f32"
    rounding = True
    weights_bytes = 0

    def __init__(self, step_s: float = 0.0) -> None:
        self.step_s = step_s
        self.batches: list[list[int]] = []
        self.states: list[weakref.ref[Memory]] = []

    def new_state(self) -> Any:
        state = Memory()
        self.states.append(weakref.ref(state))
        return state

    def begin(self, batch: Items[Segment]) -> UnitPass:
        return UnitPass(lambda: self.forward(batch))

    def forward(self, batch: Items[Segment]) -> list[np.ndarray | None]:
        time.sleep(self.step_s)
        self.batches.append([len(s.ids) for s in batch])
        if any(POISON in s.ids for s in batch):
            raise ValueError("poison")
        rows: list[np.ndarray | None] = []
        for segment, ids, want in batch:
            state: Any = segment
            state.tokens += tuple(ids.tolist())
            state.length += len(ids)
            rng = np.random.default_rng(list(state.tokens))
            row = rng.standard_normal(VOCAB).astype(np.float32)
            row[[POISON, NAN]] = -30
            if NAN in state.tokens:
                row[:] = np.nan
            rows.append(row if want is Want.LAST else None)
        return rows


def sequence(name: str, prompt: list[int], tokens: int = 8, **more: Any) -> Sequence:
    sampling = more.pop("sampling", Sampling())
    return Sequence(name, array("i", prompt), sampling, tokens, **more)


async def finish(events: Events) -> tuple[list[int], Ended]:
    ids: list[int] = []
    while True:
        event = await asyncio.wait_for(events.get(), 10)
        if isinstance(event, Generated):
            ids.append(event.choice.id)
        elif isinstance(event, Ended):
            return ids, event


def with_engine(
    body: Callable[[Engine, HashNetwork], Awaitable[None]],
    *,
    limits: Limits = LIMITS,
    max_waiting: int = 50,
    step_s: float = 0.0,
) -> None:
    async def main() -> None:
        network = HashNetwork(step_s)
        engine = Engine(lambda: network, limits, max_waiting)
        await engine.start(0)
        try:
            await body(engine, network)
        finally:
            await engine.close(5)

    asyncio.run(main())


def alone(prompt: list[int], tokens: int = 8, **more: Any) -> list[int]:
    result: list[int] = []

    async def body(engine: Engine, network: HashNetwork) -> None:
        ids, ended = await finish(engine.submit(sequence("alone", prompt, tokens, **more)))
        assert ended.error is None
        result.extend(ids)

    with_engine(body)
    return result


@pytest.mark.parametrize(("temperature", "threads"), [(0.0, 1), (1.0, 1), (1.0, 2)])
def test_company_changes_nothing(temperature: float, threads: int) -> None:
    """Eight sequences at once give each the tokens that it gets alone, greedy and seeded."""
    prompts = [[i + 1] * (i * 3 + 1) for i in range(8)]
    samplings = [Sampling(temperature, seed=i) for i in range(8)]
    expected = [alone(p, 150, sampling=s) for p, s in zip(prompts, samplings, strict=True)]

    async def body(engine: Engine, network: HashNetwork) -> None:
        queues = [
            engine.submit(sequence(f"r{i}", p, 150, sampling=s))
            for i, (p, s) in enumerate(zip(prompts, samplings, strict=True))
        ]
        results = await asyncio.gather(*map(finish, queues))
        assert [ids for ids, _ in results] == expected
        assert {ended.finish for _, ended in results} == {Finish.LENGTH}
        assert max(map(len, network.batches)) == 8, "decoding is batched"

    with_engine(body, limits=LIMITS._replace(threads=threads))


def test_stop_id_ends_with_stop() -> None:
    """A stop id ends the sequence and is its last token."""
    free = alone([3, 1, 4], 8)

    async def body(engine: Engine, network: HashNetwork) -> None:
        stopping = sequence("s", [3, 1, 4], 8, stop_ids=frozenset({free[2]}))
        ids, ended = await finish(engine.submit(stopping))
        assert ids == free[: free.index(free[2]) + 1]
        assert ended.finish is Finish.STOP

    with_engine(body)


def test_cancel_frees_within_one_step() -> None:
    """After a cancel at most the step that runs then is finished, whatever the prompt's length."""

    async def body(engine: Engine, network: HashNetwork) -> None:
        long = sequence("long", [1] * 4_000, 5)
        events = engine.submit(long)
        await events.get()
        before = len(network.batches)
        assert engine.cancel("long")
        ended: Any = None
        while not isinstance(ended, Ended):
            ended = await events.get()
        assert ended.finish is Finish.CANCELLED
        assert len(network.batches) <= before + 1
        assert engine.sequences == []
        assert not engine.cancel("long")
        assert engine.totals.cancelled == 1

    with_engine(body, step_s=0.02)


def test_waiting_request_can_be_cancelled_and_expire() -> None:
    """A request ends in the queue too: by a cancel, or when its deadline passes."""

    async def body(engine: Engine, network: HashNetwork) -> None:
        running = engine.submit(sequence("runs", [1], 40))
        waits = engine.submit(sequence("waits", [2]))
        late = engine.submit(sequence("late", [3], deadline_s=time.monotonic() + 0.05))
        assert engine.cancel("waits")
        assert (await finish(waits))[1].finish is Finish.CANCELLED
        assert (await finish(late))[1].finish is Finish.DEADLINE
        assert (await finish(running))[1].finish is Finish.LENGTH

    with_engine(body, limits=Limits(1, 4), step_s=0.01)


def test_failing_step_fails_its_sequences_and_goes_on() -> None:
    """A model that raises ends the sequences of that step with a reason; the next one runs."""
    expected = alone([1, 2])

    async def body(engine: Engine, network: HashNetwork) -> None:
        ids, ended = await finish(engine.submit(sequence("bad", [1, POISON])))
        assert ids == []
        assert ended.finish is Finish.ERROR
        assert isinstance(ended.error, EngineError)
        assert ended.error.reason == "STEP_FAILED"
        assert engine.totals.failed_steps_in_a_row == 1
        assert (await finish(engine.submit(sequence("good", [1, 2]))))[0] == expected
        assert engine.totals.failed_steps_in_a_row == 0

    with_engine(body)


def test_bad_logits_fail_one_sequence_only() -> None:
    """Logits that are no numbers end their own sequence; its neighbour finishes."""
    expected = alone([7, 7])

    async def body(engine: Engine, network: HashNetwork) -> None:
        bad, good = engine.submit(sequence("bad", [NAN])), engine.submit(sequence("good", [7, 7]))
        (_, bad_end), (ids, good_end) = await asyncio.gather(finish(bad), finish(good))
        assert isinstance(bad_end.error, DaemonError)
        assert bad_end.error.reason == "LOGITS_NOT_FINITE"
        assert good_end.error is None
        assert ids == expected

    with_engine(body)


def test_full_room_and_duplicate_ids_are_refused() -> None:
    """The request too many, and a second one of the same id, are refused with their reasons."""

    async def body(engine: Engine, network: HashNetwork) -> None:
        first = engine.submit(sequence("a", [1], 20))
        await first.get()  # it runs, so the room is empty
        engine.submit(sequence("b", [1]))
        with pytest.raises(OverloadedError) as full:
            engine.submit(sequence("c", [1]))
        assert full.value.reason == "QUEUE_FULL"
        with pytest.raises(RequestError) as twice:
            engine.submit(sequence("b", [1]))
        assert twice.value.reason == "REQUEST_ID_IN_USE"
        assert engine.totals.refused == 2

    with_engine(body, limits=Limits(1, 4), max_waiting=1, step_s=0.01)


def test_slow_reader_stalls_nobody() -> None:
    """A consumer that reads nothing delays no other, and its backlog ends at max_tokens."""

    async def body(engine: Engine, network: HashNetwork) -> None:
        unread = engine.submit(sequence("slow", [1], 30))
        ids, _ = await finish(engine.submit(sequence("quick", [2], 30)))
        assert len(ids) == 30
        await engine.drain(10)
        assert unread.qsize() == 30 + 1

    with_engine(body)


def test_drain_waits_then_tells() -> None:
    """Draining lets short requests finish, ends long ones at the limit, and refuses new ones."""

    async def body(engine: Engine, network: HashNetwork) -> None:
        short, long = engine.submit(sequence("s", [1], 5)), engine.submit(sequence("l", [2], 9_999))
        draining = asyncio.create_task(engine.drain(0.5))
        await asyncio.sleep(0.01)
        with pytest.raises(DaemonError) as caught:
            engine.submit(sequence("late", [1]))
        assert caught.value.reason == "DRAINING"
        assert await draining == (1, 1)
        assert (await finish(short))[1].finish is Finish.LENGTH
        assert (await finish(long))[1].finish is Finish.DRAINED

    with_engine(body, step_s=0.01)


def test_drain_does_not_wait_for_a_slow_step() -> None:
    """At the limit everyone is told at once, in the middle of a step; nobody is told twice."""

    async def body(engine: Engine, network: HashNetwork) -> None:
        events = engine.submit(sequence("r", [1], 50))
        await events.get()
        network.step_s = 1.0
        await asyncio.sleep(0.05)
        began_s = time.monotonic()
        assert await engine.drain(0.1) == (0, 1)
        assert time.monotonic() - began_s < 0.5
        _, ended = await finish(events)
        assert ended.finish is Finish.DRAINED
        await asyncio.sleep(1.2)
        assert events.empty()
        assert engine.totals.cancelled == 1

    with_engine(body, step_s=0.01)


def test_loading_that_fails_raises_where_it_was_started() -> None:
    """What the loader raises on the engine's thread arrives at `start`."""

    async def main() -> None:
        def load() -> HashNetwork:
            raise EngineError("NO_MODEL", "there is none")

        with pytest.raises(EngineError):
            await Engine(load, Limits(1, 4), 1).start(0)

    asyncio.run(main())


def test_closing_does_not_wait_for_a_load_that_never_ends() -> None:
    """A daemon that is stopped while it loads leaves at once; what asked for the start is free."""

    async def main() -> None:
        never = threading.Event()
        engine = Engine(lambda: never.wait() and HashNetwork(), LIMITS, 1)  # type: ignore[arg-type,return-value]
        starting = asyncio.create_task(engine.start(0))
        await asyncio.sleep(0.05)
        assert engine.state == "loading"
        with pytest.raises(DaemonError) as caught:
            engine.submit(sequence("early", [1]))
        assert caught.value.reason == "LOADING"
        assert await engine.drain(1) == (0, 0)
        starting.cancel()
        began_s = time.monotonic()
        await engine.close(0.1)
        assert time.monotonic() - began_s < 2
        never.set()

    asyncio.run(main())


def test_death_of_the_thread_ends_every_request() -> None:
    """A defect in the loop itself fails what is open and everything after, and is told."""

    async def body(engine: Engine, network: HashNetwork) -> None:
        def broken(*_: object) -> None:
            raise SystemExit("defect")

        engine.room.arrange = broken  # type: ignore[assignment,method-assign]
        _, ended = await finish(engine.submit(sequence("a", [1])))
        assert ended.error is not None
        assert ended.error.reason == "ENGINE_DIED"
        await asyncio.wait_for(engine.died.wait(), 5)
        with pytest.raises(DaemonError) as caught:
            engine.submit(sequence("b", [1]))
        assert caught.value.reason == "ENGINE_FAILED"

    with_engine(body)


def test_ended_sequences_leave_no_session_behind() -> None:
    """Finished, failed, cancelled and timed out: the session is gone, not just its count."""

    async def body(engine: Engine, network: HashNetwork) -> None:
        await finish(engine.submit(sequence("finished", [1, 2], 3)))
        await finish(engine.submit(sequence("failed", [1, POISON], 3)))
        late = sequence("late", [3], 10_000, deadline_s=time.monotonic() + 0.05)
        await finish(engine.submit(late))
        events = engine.submit(sequence("cancelled", [4], 10_000))
        await asyncio.wait_for(events.get(), 10)
        assert engine.cancel("cancelled")
        await finish(events)
        await finish(engine.submit(sequence("after", [5], 2)))  # a step later nothing may be held
        gc.collect()
        assert len(network.states) >= 5
        assert [ref for ref in network.states if ref() is not None] == []

    with_engine(body)


def test_random_numbers_belong_to_absolute_positions() -> None:
    """A prompt grown by its own first tokens goes on exactly as it would have."""
    sampling = Sampling(temperature=1.0, seed=5)
    whole = alone([7, 8, 9], 8, sampling=sampling)
    assert alone([7, 8, 9, *whole[:3]], 5, sampling=sampling) == whole[3:]


@pytest.mark.parametrize("threads", [1, 2])
def test_a_prompt_that_fails_ends_no_running_answer(threads: int) -> None:
    """The model raises on one request's prompt; the answer beside it goes on to its end."""
    expected = alone([1, 2, 3], 40)

    async def body(engine: Engine, network: HashNetwork) -> None:
        running = engine.submit(sequence("running", [1, 2, 3], 40))
        for _ in range(4):
            await asyncio.wait_for(running.get(), 10)
        failed = engine.submit(sequence("failed", [1, POISON], 3))
        assert (await finish(failed))[1].finish is Finish.ERROR
        ids, ended = await finish(running)
        assert ended.finish is Finish.LENGTH
        assert ids == expected[-len(ids) :]

    with_engine(body, limits=LIMITS._replace(threads=threads), step_s=0.002)
