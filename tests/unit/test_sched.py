"""The policy under random traffic, the waiting room, and the cuts of prompts."""

import random
from array import array

import pytest
from ds4_daemon.errors import OverloadedError
from ds4_daemon.sched.policy import Limits, chunk_length, plan
from ds4_daemon.sched.queue import WaitingRoom
from ds4_daemon.sched.sampling import Sampling
from ds4_daemon.sched.sequence import Sequence, State


def sequence(name: str, prompt: int, answer: int = 4) -> Sequence:
    return Sequence(name, array("i", range(prompt)), Sampling(), answer)


def run(sequences: list[Sequence], limits: Limits) -> list[list[tuple[str, int, int]]]:
    """Plan and advance until all are done: (name, first position, tokens) of each step."""
    for s in sequences:
        s.state = State.PREFILL
    steps: list[list[tuple[str, int, int]]] = []
    while any(s.state is not State.DONE for s in sequences):
        step = plan(sequences, limits)
        assert step.slices, "the policy must not rest while there is work"
        steps.append([(s.request_id, s.computed_tokens, n) for s, n, _ in step.slices])
        for s, tokens, last in step.slices:
            assert tokens >= 1
            assert last == (s.computed_tokens + tokens == len(s.ids))
            if s.state is State.PREFILL:
                s.last_prefill_step = len(steps)
            s.computed_tokens += tokens
            if last:
                s.ids.append(0)
                s.state = State.DECODE
                if s.generated_tokens == s.max_tokens:
                    s.state = State.DONE
    return steps


@pytest.mark.parametrize("seed", range(40))
def test_no_starvation_and_budgets_kept(seed: int) -> None:
    """Each step holds at most one chunk, and every decoding sequence."""
    rng = random.Random(seed)
    limits = Limits(max_running=8, chunk_tokens=rng.choice([1, 7, 64]))
    prompts = [rng.randint(1, 200) for _ in range(rng.randint(1, 8))]
    sequences = [sequence(f"s{i}", n, rng.randint(1, 9)) for i, n in enumerate(prompts)]
    steps = run(sequences, limits)
    prefilled = dict.fromkeys((s.request_id for s in sequences), 0)
    done = dict.fromkeys(prefilled, 0)
    for step in steps:
        names = [name for name, _, _ in step]
        assert len(set(names)) == len(names)
        chunks = [(name, n) for name, at, n in step if at < prompts[int(name[1:])]]
        assert len(chunks) <= 1
        assert all(n <= limits.chunk_tokens for _, n in chunks)
        decoding = {
            name
            for i, name in enumerate(prefilled)
            if prefilled[name] == prompts[i] and done[name] < sequences[i].max_tokens
        }
        assert decoding <= set(names), "every decoding sequence advances in every step"
        for name, at, n in step:
            assert at == prefilled[name] + max(0, done[name] - 1)
            if at < prompts[int(name[1:])]:
                prefilled[name] += n
            if prefilled[name] == prompts[int(name[1:])]:
                done[name] += 1


@pytest.mark.parametrize("seed", range(20))
def test_chunks_do_not_depend_on_company(seed: int) -> None:
    """A sequence is cut at the same positions alone and beside others."""
    rng = random.Random(seed)
    limits = Limits(8, rng.choice([5, 16, 100]))
    prompts = [rng.randint(1, 300) for _ in range(6)]

    def cuts(steps: list[list[tuple[str, int, int]]], name: str) -> list[tuple[int, int]]:
        return [(at, n) for step in steps for who, at, n in step if who == name]

    together = run([sequence(f"s{i}", n) for i, n in enumerate(prompts)], limits)
    for i, n in enumerate(prompts):
        alone = run([sequence(f"s{i}", n)], limits)
        assert cuts(together, f"s{i}") == cuts(alone, f"s{i}")


def test_chunks_end_at_absolute_multiples() -> None:
    """Cuts are positions divisible by the chunk size, wherever the computing starts."""
    assert chunk_length(0, 100, 32) == 32
    assert chunk_length(5, 100, 32) == 27
    assert chunk_length(96, 100, 32) == 4
    assert chunk_length(32, 64, 32) == 32


def test_prefilling_sequences_take_turns() -> None:
    """Two long prompts advance chunk by chunk in turn, the older one first."""
    steps = run([sequence("a", 30, 1), sequence("b", 30, 1)], Limits(8, 10))
    assert [step[-1][0] for step in steps] == ["a", "b", "a", "b", "a", "b"]


def test_planning_changes_nothing() -> None:
    """The policy is a function: the same counters give the same plan again."""
    sequences = [sequence("a", 30), sequence("b", 30)]
    for s in sequences:
        s.state = State.PREFILL
    assert plan(sequences, Limits(8, 10)) == plan(sequences, Limits(8, 10))
    assert plan([], Limits(8, 10)).slices == ()


def test_room_is_first_come_first_served_and_bounded() -> None:
    """The waiting room keeps order, tells places, and refuses the one too many with a reason."""
    room = WaitingRoom(3)
    a, b, c, d = (sequence(name, 1) for name in "abcd")
    for s in (a, b, c):
        room.put(s)
    with pytest.raises(OverloadedError) as caught:
        room.put(d)
    assert caught.value.reason == "QUEUE_FULL"
    assert [room.position(s) for s in (a, b, c)] == [0, 1, 2]
    assert room.remove_if(lambda s: s is b) == [b]
    assert room.take(5) == [a, c]
    assert len(room) == 0
    assert room.take(-1) == []


def test_a_verdict_that_changes_loses_nobody() -> None:
    """A sequence that is told to stop while the room is searched leaves it once or stays."""
    room = WaitingRoom(8)
    waiting = [sequence(name, 1) for name in "abc"]
    for s in waiting:
        room.put(s)
    looks: list[str] = []

    def unwanted(s: Sequence) -> bool:
        looks.append(s.request_id)
        return s is waiting[0] or looks.count(s.request_id) > 1  # b is told after its first look

    removed = room.remove_if(unwanted)
    assert [*removed, *room.take(8)] == waiting
