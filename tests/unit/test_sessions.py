"""Sessions that have a name or a pin: what becomes of them, and what forking and rewinding cost."""

import gc
import weakref
from collections.abc import Awaitable, Callable
from functools import partial

import numpy as np
import pytest
from ds4_daemon.engine.loop import Ended, Engine
from ds4_daemon.engine.prefix_state import duplicate, layout_of
from ds4_daemon.engine.sessions import Info, Sessions, Where
from ds4_daemon.errors import ConflictError, DaemonError, NotFoundError, RequestError
from ds4_daemon.model.load import load_network
from ds4_daemon.model.network import Network, Segment, Want
from ds4_daemon.model.state import SessionState
from ds4_daemon.sched.sequence import CacheUse, Client

from tests.model.random_models import CONFIGS, random_ids, random_tensors, write_release
from tests.unit.test_prefix_live import finish, greedy, sequence, with_engine

CONFIG = CONFIGS["true-heads"]
FIRST = random_ids(CONFIG, 300, 1).tolist()


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Network:
    folder = write_release(tmp_path_factory.mktemp("m") / "m", CONFIG, random_tensors(CONFIG, 2))
    return load_network(folder, device="cpu")


def with_sessions(
    network: Network, body: Callable[[Engine, Sessions], Awaitable[None]], live_bytes: int = 10**9
) -> None:
    async def run(engine: Engine) -> None:
        assert engine.prefixes is not None
        await body(engine, Sessions(engine.prefixes))

    with_engine(network, run, live_bytes)


def only(sessions: Sessions) -> Info:
    (found,) = sessions.list()
    return found


def reason(call: Callable[[], object], kind: type[DaemonError]) -> str:
    with pytest.raises(kind) as caught:
        call()
    assert caught.value.hint
    return caught.value.reason


def test_a_named_session_is_extended_and_kept(network: Network) -> None:
    """A name makes a session, the next request under it goes on with it, and it keeps its id."""

    async def body(engine: Engine, sessions: Sessions) -> None:
        one = sequence("1", FIRST, 4, session="mine", client=Client("app", "1"))
        answer = await finish(engine, one)
        made = only(sessions)
        assert (made.name, made.where, made.tokens) == ("mine", Where.IDLE, 303)
        assert made.tail_ids == tuple([*FIRST, *answer][279:303])
        assert made.client == ("app", "1")
        longer = [*FIRST, *answer, *FIRST[:20]]
        two = sequence("2", longer, 4, session="mine", client=Client("app", "2"))
        await finish(engine, two)
        assert two.cached_live_tokens == 303
        grown = only(sessions)
        assert (grown.id, grown.name, grown.tokens) == (made.id, "mine", 327)
        assert grown.client == ("app", "2")
        assert grown.own_bytes > 0
        assert grown.shared_bytes == 0

    with_sessions(network, body)


def test_a_prompt_that_leaves_a_named_session_takes_its_name_back(network: Network) -> None:
    """What they have in common is not computed, and the name is on the new state only."""

    async def body(engine: Engine, sessions: Sessions) -> None:
        await finish(engine, sequence("1", FIRST, 4, session="mine"))
        before = only(sessions)
        other = sequence("2", [*FIRST[:280], *FIRST[:40]], 4, session="mine")
        await finish(engine, other)
        assert other.cached_live_tokens == 256
        named = [info for info in sessions.list() if info.name]
        assert [(info.id, info.tokens) for info in named] == [(before.id, 323)]

    with_sessions(network, body)


def test_who_does_not_name_a_session_leaves_it_as_it_is(network: Network) -> None:
    """A prompt that goes on from a named session without its name gets a fork of its end."""

    async def body(engine: Engine, sessions: Sessions) -> None:
        answer = await finish(engine, sequence("1", FIRST, 4, session="mine"))
        longer = [*FIRST, *answer, 5, 6]
        two = sequence("2", longer, 4)
        got = await finish(engine, two)
        assert two.cached_live_tokens == 303
        assert got == greedy(network, [256, *range(300, 304)], longer, 4)
        assert sorted((i.name, i.tokens) for i in sessions.list()) == [("", 309), ("mine", 303)]

    with_sessions(network, body)


@pytest.mark.parametrize(("at", "tokens"), [(None, 303), (303, 303), (290, 256), (100, 0)])
def test_a_fork_costs_no_prefill(network: Network, at: int | None, tokens: int) -> None:
    """It is the same state in the same memory, up to its end or the last boundary before."""

    async def body(engine: Engine, sessions: Sessions) -> None:
        answer = await finish(engine, sequence("1", FIRST, 4, session="mine"))
        prefilled, source = engine.totals.prefilled_tokens, only(sessions)
        moved = sessions.fork("mine", "other", at)
        assert engine.totals.prefilled_tokens == prefilled == 300
        assert moved.info.tokens == tokens
        assert moved.recompute_tokens == (at or 303) - tokens
        both = {info.name: info for info in sessions.list()}
        assert both["mine"].id == source.id != both["other"].id
        if tokens:
            assert both["other"].shared_bytes > both["other"].own_bytes
            assert engine.prefixes is not None
            assert engine.prefixes.idle_bytes < 1.5 * source.own_bytes
        for name in ("other", "mine"):  # each goes on, and neither sees the other
            prompt = [*FIRST, *answer, *([7, 8] if name == "mine" else [9])]
            asked = sequence(name, prompt, 4, session=name)
            got = await finish(engine, asked)
            assert got == greedy(network, [256, *range(300, 304)], prompt, 4)
            assert asked.cached_live_tokens == 303

    with_sessions(network, body)


def test_rewinding_goes_to_a_kept_boundary(network: Network) -> None:
    """It says what its next request computes again, and that request gets the right tokens."""

    async def body(engine: Engine, sessions: Sessions) -> None:
        await finish(engine, sequence("1", FIRST, 4, session="mine"))
        moved = sessions.rewind("mine", 280)
        assert (moved.info.tokens, moved.recompute_tokens) == (256, 24)
        assert only(sessions).tokens == 256
        again = [*FIRST[:280], 5, 6, 7]
        two = sequence("2", again, 4, session="mine")
        assert await finish(engine, two) == greedy(network, [256], again, 4)
        assert two.cached_live_tokens == 256
        assert only(sessions).id == moved.info.id

    with_sessions(network, body)


def test_sessions_can_be_named_pinned_and_deleted(network: Network) -> None:
    """By id or name; a deleted one is gone and its memory free."""

    async def body(engine: Engine, sessions: Sessions) -> None:
        await finish(engine, sequence("1", FIRST, client=Client("app")))
        found = only(sessions)
        assert sessions.name(found.id, "a").name == "a"
        assert sessions.pin("a", pinned=True).pinned
        assert sessions.name("a", "b").id == found.id
        assert not sessions.pin("b", pinned=False).pinned
        assert sessions.name("b", "").name == ""
        assert [info.id for info in sessions.list("app")] == [found.id]
        assert not sessions.list("other")
        assert sessions.delete(found.id) == found.own_bytes
        assert not sessions.list()
        assert engine.prefixes is not None
        assert engine.prefixes.idle_bytes == 0

    with_sessions(network, body)


def test_what_cannot_be_done_is_refused(network: Network) -> None:
    """With a reason and a hint, and nothing has changed then."""

    async def body(engine: Engine, sessions: Sessions) -> None:
        await finish(engine, sequence("1", FIRST, session="a"))
        sessions.fork("a", "b", None)
        before = [info[:5] for info in sessions.list()]
        assert reason(lambda: sessions.fork("c", "", None), NotFoundError) == "SESSION_NOT_FOUND"
        assert reason(lambda: sessions.delete(""), NotFoundError) == "SESSION_NOT_FOUND"
        assert reason(lambda: sessions.fork("a", "b", None), ConflictError) == "NAME_TAKEN"
        assert reason(lambda: sessions.name("a", "b"), ConflictError) == "NAME_TAKEN"
        assert reason(lambda: sessions.name("a", "ä"), RequestError) == "BAD_SESSION_NAME"
        assert reason(lambda: sessions.name("a", "s-01234567"), RequestError) == "BAD_SESSION_NAME"
        assert reason(lambda: sessions.fork("a", "", 304), RequestError) == "POSITION_PAST_END"
        assert reason(lambda: sessions.rewind("a", 304), RequestError) == "POSITION_PAST_END"
        assert [info[:5] for info in sessions.list()] == before

    with_sessions(network, body)


def test_idle_sessions_hold_once_what_they_have_in_common(network: Network) -> None:
    """Four that computed one prefix each hold the entries of one, and go on to the same bits."""
    prefix = random_ids(CONFIG, 512, 3).tolist()
    prompts = [[*prefix, *random_ids(CONFIG, 20, i).tolist()] for i in range(4)]
    entries_bytes = 4 * layout_of(CONFIG).block_bytes

    async def body(engine: Engine, sessions: Sessions) -> None:
        prefixes = engine.prefixes
        assert prefixes is not None

        def shared() -> int:
            while prefixes.shelf.share_step():
                pass
            return prefixes.idle_bytes

        held_bytes = []
        for i, prompt in enumerate(prompts):
            alone = CacheUse(bypass=True)  # so that each computes its own
            await finish(engine, sequence(str(i), prompt, session=str(i), cache=alone))
            held_bytes.append(await engine.ask(shared))
        assert held_bytes[3] < 4 * held_bytes[0] - 3 * entries_bytes
        infos = {info.name: info for info in sessions.list()}
        assert all(info.shared_bytes >= entries_bytes for info in infos.values())
        assert sum(info.own_bytes for info in infos.values()) < held_bytes[3] - entries_bytes
        for name in ("3", "0"):
            longer = [*prefixes.idle[0].ids[:512].tolist(), *prompts[int(name)][512:]]
            longer += greedy(network, [256, 512], longer, 4)
            asked = sequence(name, longer, 4, session=name)
            steps = [256, 512, *range(532, 536)]
            assert await finish(engine, asked) == greedy(network, steps, longer, 4)
            assert asked.cached_live_tokens == 535

    with_sessions(network, body)


def test_what_costs_least_to_get_back_leaves_first(network: Network) -> None:
    """For its memory a long session is worth more than a short one, until it was long unused."""
    short, long = random_ids(CONFIG, 150, 8).tolist(), random_ids(CONFIG, 1500, 7).tolist()

    async def body(engine: Engine, sessions: Sessions) -> None:
        prefixes = engine.prefixes
        assert prefixes is not None
        await finish(engine, sequence("long", long))
        await finish(engine, sequence("short", short))
        await finish(engine, sequence("newest", FIRST))
        kept = {session.length: session for session in prefixes.idle}
        assert await engine.ask(lambda: prefixes.shelf.free(1)) > 0
        assert [session.length for session in prefixes.idle] == [1503, 303]
        prefixes.shelf.put(kept[153])
        kept[1503].used_s -= 3600
        assert await engine.ask(lambda: prefixes.shelf.free(1)) > 0
        assert sorted(session.length for session in prefixes.idle) == [153, 303]

    with_sessions(network, body)


def test_pinned_and_named_sessions_leave_last(network: Network) -> None:
    """Where nothing saves them they stay as long as they fit, and no more can be pinned."""
    prompts = [random_ids(CONFIG, 300, i).tolist() for i in range(6)]

    async def body(engine: Engine, sessions: Sessions) -> None:
        assert engine.prefixes is not None
        await finish(engine, sequence("pinned", prompts[0], session="pinned"))
        sessions.pin("pinned", pinned=True)
        await finish(engine, sequence("named", prompts[1], session="named"))
        for i in (2, 3, 4):
            await finish(engine, sequence(str(i), prompts[i]))
        assert engine.prefixes.idle_bytes <= 20_000_000
        assert sorted(info.name for info in sessions.list()) == ["named", "pinned"]
        engine.prefixes.shelf.budget_bytes = 10_000_000
        assert reason(lambda: sessions.pin("named", pinned=True), ConflictError) == "NO_ROOM_TO_PIN"
        await finish(engine, sequence("5", prompts[5]))
        assert [info.name for info in sessions.list()] == ["pinned"]

    with_sessions(network, body, 20_000_000)


def test_a_failure_leaves_a_named_session_at_its_last_boundary(network: Network) -> None:
    """What a failed request computed is in doubt, what it began with is not."""

    async def body(engine: Engine, sessions: Sessions) -> None:
        answer = await finish(engine, sequence("1", FIRST, session="a"))
        before = only(sessions)
        prefixes = engine.prefixes
        assert prefixes is not None
        failing = sequence("2", [*FIRST, *answer, 5], session="a")

        def fail() -> None:
            prefixes.sync(failing)
            prefixes.close(failing, failed=True)

        await engine.ask(fail)
        after = only(sessions)
        assert (after.id, after.name, after.tokens) == (before.id, "a", 256)

    with_sessions(network, body)


def test_a_second_request_on_a_session_is_refused(network: Network) -> None:
    """While one runs the other is told so; a name of another salt is refused too."""

    async def body(engine: Engine, sessions: Sessions) -> None:
        running = sequence("1", FIRST, 200, session="a")
        events = engine.submit(running)
        await events.get()
        assert (await engine.ask(lambda: only(sessions))).where is Where.ACTIVE
        for salt, why in (("", "SESSION_IN_USE"), ("x", "NAME_TAKEN")):
            other = sequence(why, FIRST, session="a", cache=CacheUse(salt=salt))
            ended = await engine.submit(other).get()
            assert isinstance(ended, Ended)
            assert ended.error is not None
            assert ended.error.reason == why
        for call in (lambda: sessions.delete("a"), lambda: sessions.rewind("a", 128)):
            assert reason(call, ConflictError) == "SESSION_IN_USE"
        fork = await engine.ask(lambda: sessions.fork("a", "b", None))
        assert fork.info.tokens in (0, 256)
        engine.cancel("1")
        while not isinstance(await events.get(), Ended):
            pass
        assert {info.name for info in sessions.list()} >= {"a"}

    with_sessions(network, body)


def test_any_order_of_operations_keeps_sessions_right(network: Network) -> None:
    """After forks, rewinds, requests and evictions each session is what its tokens say."""
    random = np.random.RandomState(5)
    root = random_ids(CONFIG, 270, 9).tolist()

    async def body(engine: Engine, sessions: Sessions) -> None:
        prefixes = engine.prefixes
        assert prefixes is not None
        for step in range(30):
            found = [info for info in sessions.list() if info.name]
            ref, tokens = "", 0
            if found:
                one = found[random.randint(len(found))]
                ref, tokens = one.id, one.tokens
            match random.randint(5) if found else 0:
                case 0:
                    ids = [*root[: random.randint(130, 270)], *random.randint(3, 90, 5).tolist()]
                    name = ["", "a", "b"][random.randint(3)]
                    await finish(engine, sequence(str(step), ids, 3, session=name))
                case 1:
                    await engine.ask(partial(sessions.fork, ref, f"f{step}", None))
                case 2:
                    await engine.ask(partial(sessions.rewind, ref, min(140, tokens)))
                case 3:
                    await engine.ask(partial(sessions.delete, ref))
                case 4:
                    await engine.ask(partial(prefixes.shelf.free, 2_000_000))
            labels = [s.label for s in prefixes.all_sessions()]
            named = [label.name for label in labels if label.name]
            assert len(set(named)) == len(named)
            assert len({label.id for label in labels}) == len(labels)
            assert prefixes.idle_bytes <= 40_000_000
        for session in list(prefixes.idle):
            ids = [*session.ids[: session.length].tolist(), 7]
            state = network.new_state()
            duplicate(session.state, state)
            row = network.forward([Segment(state, np.array(ids[-1:], np.int32), Want.LAST)])[0]
            cuts = [at for at in (128, 256) if at < len(ids) - 1]
            assert row is not None
            assert int(row.argmax()) == greedy(network, [*cuts, len(ids) - 1], ids, 1)[0]

    with_sessions(network, body, 40_000_000)


def test_nothing_that_left_is_held(network: Network) -> None:
    """An engine that never rests to compare sessions holds none of those that were freed."""

    async def body(engine: Engine, sessions: Sessions) -> None:
        prefixes = engine.prefixes
        assert prefixes is not None
        shelf = prefixes.shelf
        for seed in range(3):
            await finish(engine, sequence(str(seed), [*FIRST, seed]))

        def take_all() -> list[weakref.ref[SessionState]]:
            for session in list(shelf.sessions):
                shelf.take(session)
                shelf.put(session)
            assert shelf.share_step()
            left = [weakref.ref(session.state) for session in shelf.sessions]
            for session in list(shelf.sessions):
                shelf.take(session)
            assert shelf.nbytes == 0
            return left

        left = await engine.ask(take_all)
        gc.collect()
        assert [ref for ref in left if ref() is not None] == []

    with_sessions(network, body)
