"""Live sessions: what a request computed is taken up by the next one, and only by whom it may."""

import asyncio
import time
from array import array
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import pytest
from ds4_daemon.engine.loop import Ended, Engine, Generated
from ds4_daemon.engine.prefix import Prefixes
from ds4_daemon.engine.prefix_session import is_spared
from ds4_daemon.engine.prefix_state import layout_of
from ds4_daemon.misses import Miss
from ds4_daemon.model.load import load_network
from ds4_daemon.model.network import Network, Segment, Want
from ds4_daemon.sched.policy import Limits
from ds4_daemon.sched.sampling import Sampling
from ds4_daemon.sched.sequence import CacheUse, Finish, Sequence

from tests.model.random_models import CONFIGS, random_ids, random_tensors, write_release

CONFIG = CONFIGS["true-heads"]
CHUNK = 256


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Network:
    folder = write_release(tmp_path_factory.mktemp("m") / "m", CONFIG, random_tensors(CONFIG, 2))
    return load_network(folder, device="cpu")


def sequence(name: str, ids: list[int], tokens: int = 4, **more: Any) -> Sequence:
    return Sequence(name, array("i", ids), Sampling(), tokens, **more)


async def finish(engine: Engine, asked: Sequence) -> list[int]:
    """Its tokens. The sequence keeps its counters."""
    events, ids = engine.submit(asked), []
    while True:
        event = await asyncio.wait_for(events.get(), 30)
        if isinstance(event, Generated):
            ids.append(event.choice.id)
        elif isinstance(event, Ended):
            assert event.error is None
            return ids


def with_engine(
    network: Network, body: Callable[[Engine], Awaitable[None]], live_bytes: int = 10**9
) -> None:
    def reuse(model: Any, engine: Engine) -> Prefixes:
        layout = layout_of(model.config)
        return Prefixes(model.new_state, layout, live_bytes=live_bytes, wake=engine.wake)

    async def main() -> None:
        engine = Engine(lambda: network, Limits(8, CHUNK), 50, reuse)
        await engine.start(0)
        try:
            await body(engine)
        finally:
            await engine.close(5)

    asyncio.run(main())


def greedy(network: Network, cuts: list[int], ids: list[int], count: int) -> list[int]:
    """`count` tokens after `ids`, with the state advanced to each of `cuts` in turn."""
    state, made = network.new_state(), []
    for stop in [*cuts, len(ids)]:
        piece = np.array(ids[state.length : stop], np.int32)
        row = network.forward([Segment(state, piece, Want.LAST)])[0]
    for _ in range(count):
        assert row is not None
        made.append(int(row.argmax()))
        row = network.forward([Segment(state, np.array(made[-1:], np.int32), Want.LAST)])[0]
    return made


def test_a_session_is_extended_whole(network: Network) -> None:
    """A prompt that goes on from an answer computes only what is new, to the same bits."""
    first = random_ids(CONFIG, 300, 1).tolist()

    async def body(engine: Engine) -> None:
        one = sequence("1", first, 5)
        answer = await finish(engine, one)
        assert (one.cached_tokens, one.miss) == (0, Miss.DISABLED)
        longer = [*first, *answer, *random_ids(CONFIG, 50, 2).tolist()]
        two = sequence("2", longer, 5)
        got = await finish(engine, two)
        assert two.cached_live_tokens == len(first) + len(answer) - 1
        steps = list(range(len(first), two.cached_live_tokens + 1))
        expected = greedy(network, [256, *steps], longer, 5)
        assert got == expected

    with_engine(network, body)


def test_a_kept_boundary_serves_prompts_that_diverge(network: Network) -> None:
    """Where the whole session does not fit, its last prompt's end does; both live on."""
    first = random_ids(CONFIG, 700, 1).tolist()
    other = [*first[:650], *random_ids(CONFIG, 100, 3).tolist()]

    async def body(engine: Engine) -> None:
        await finish(engine, sequence("1", first))
        for name in "23":
            diverged = sequence(name, other)
            got = await finish(engine, diverged)
            assert diverged.cached_live_tokens == 640
            assert got == greedy(network, [256, 512, 640], other, 4)
        again = sequence("4", first)
        assert await finish(engine, again) == greedy(network, [256, 512, 640], first, 4)
        assert again.cached_live_tokens == 640
        assert engine.prefixes is not None
        assert len(engine.prefixes.idle) == 4

    with_engine(network, body)


def test_an_anchor_serves_other_conversations(network: Network) -> None:
    """What conversations begin with is kept where it was said to end."""
    system = random_ids(CONFIG, 300, 1).tolist()
    prompts = [[*system, *random_ids(CONFIG, 500, i).tolist()] for i in (2, 3)]

    async def body(engine: Engine) -> None:
        await finish(engine, sequence("1", prompts[0], anchor_tokens=300))
        two = sequence("2", prompts[1], anchor_tokens=300)
        got = await finish(engine, two)
        assert two.cached_live_tokens == 256
        assert got == greedy(network, [256, 512, 768], prompts[1], 4)

    with_engine(network, body)


def test_the_end_of_an_answer_is_kept(network: Network) -> None:
    """A boundary passed while decoding can be returned to."""
    first = random_ids(CONFIG, 250, 1).tolist()

    async def body(engine: Engine) -> None:
        answer = await finish(engine, sequence("1", first, 20))
        other = [*first, *answer[:10], *random_ids(CONFIG, 40, 3).tolist()]
        two = sequence("2", other)
        got = await finish(engine, two)
        assert two.cached_live_tokens == 256
        assert got == greedy(network, [128, *range(250, 257)], other, 4)

    with_engine(network, body)


@pytest.mark.parametrize(
    "second",
    [CacheUse(salt="b"), CacheUse(bypass=True)],
    ids=["salt", "bypass"],
)
def test_nothing_is_taken_that_may_not_be(network: Network, second: CacheUse) -> None:
    """Another salt shares nothing, and who asks for a whole computation gets one."""
    ids = random_ids(CONFIG, 300, 1).tolist()

    async def body(engine: Engine) -> None:
        await finish(engine, sequence("1", ids))
        two = sequence("2", ids, cache=second)
        await finish(engine, two)
        assert two.cached_tokens == 0
        assert two.miss is (Miss.BYPASSED if second.bypass else Miss.DISABLED)

    with_engine(network, body)


def test_what_is_not_to_be_saved_is_not_kept(network: Network) -> None:
    """A request with no_save leaves no session behind."""
    ids = random_ids(CONFIG, 300, 1).tolist()

    async def body(engine: Engine) -> None:
        await finish(engine, sequence("1", ids, cache=CacheUse(no_save=True)))
        assert engine.prefixes is not None
        assert not engine.prefixes.idle

    with_engine(network, body)


def test_the_budget_bounds_what_is_kept(network: Network) -> None:
    """Sessions beyond the budget leave, the least recently used first; an empty one keeps none."""
    prompts = [random_ids(CONFIG, 300, i).tolist() for i in range(4)]

    async def bounded(engine: Engine) -> None:
        for i in (0, 1, 0, 2, 3):
            await finish(engine, sequence(str(i), prompts[i]))
        assert engine.prefixes is not None
        kept = [session.ids[:300].tolist() for session in engine.prefixes.idle]
        assert 1 <= len(kept) < 4
        assert kept[-1] == prompts[3]
        assert engine.prefixes.idle_bytes <= 16_000_000

    async def none(engine: Engine) -> None:
        await finish(engine, sequence("1", prompts[0]))
        two = sequence("2", prompts[0])
        await finish(engine, two)
        assert two.cached_tokens == 0

    with_engine(network, bounded, 16_000_000)
    with_engine(network, none, 0)


def test_eight_clients_at_once_share_a_prefix(network: Network) -> None:
    """Who comes while others run takes what they have computed, and all get the right tokens."""
    system = random_ids(CONFIG, 512, 1).tolist()
    prompts = [[*system, *random_ids(CONFIG, 40 + i, i).tolist()] for i in range(8)]

    async def body(engine: Engine) -> None:
        await finish(engine, sequence("first", [*system, 1], anchor_tokens=512))
        asked = [sequence(str(i), p, anchor_tokens=512) for i, p in enumerate(prompts)]
        results = await asyncio.gather(*(finish(engine, one) for one in asked))
        assert [one.cached_live_tokens for one in asked] == [512] * 8
        expected = [greedy(network, [256, 512], p, 4) for p in prompts]
        assert results == expected

    with_engine(network, body)


def test_steps_of_the_lattice_are_spared_beside_other_checkpoints() -> None:
    """A step is saved unless a checkpoint lies half a step before it; every fourth always is."""
    assert not is_spared(4096, set())
    assert not is_spared(4096, {2048})
    assert is_spared(4096, {2049, 100})
    assert not is_spared(16384, {16256})
    assert not is_spared(8192, {8192, 9000})


def test_a_prefill_that_is_cancelled_midway_is_gone_on_with(
    network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was computed before the chunk that a cancel cut short serves the next try, exactly."""
    prompt = random_ids(CONFIG, 700, 1).tolist()
    begin = network.begin

    async def body(engine: Engine) -> None:
        one = sequence("1", prompt)

        def begin_slowly(batch: Any) -> Any:
            run = begin(batch)
            if run.units and one.computed_tokens == 512:
                engine.stop(one, Finish.CANCELLED)
                run.advance(3)
                time.sleep(0.3)  # longer than a slice: no second unit of it is begun
            return run

        monkeypatch.setattr(network, "begin", begin_slowly)
        await finish(engine, one)
        monkeypatch.setattr(network, "begin", begin)
        assert one.computed_tokens == 512
        two = sequence("2", prompt)
        got = await finish(engine, two)
        assert two.cached_live_tokens == 512
        assert got == greedy(network, [256, 512, 640], prompt, 4)

    with_engine(network, body)
