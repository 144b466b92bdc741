"""The policy as properties: nobody starves, budgets hold, nothing rests while there is work."""

import math
from array import array
from collections import Counter, defaultdict
from typing import Any

from ds4_daemon.sched.ledger import DECODED_TOKEN_WORK, ClientTerms, Ledger
from ds4_daemon.sched.policy import (
    BESIDE_SHARE,
    MAX_SLICE_S,
    PASSED_S,
    PATIENCE_S,
    QUANTUM_WORK,
    SLICE_SHARE,
    Limits,
    StepPlan,
    admit,
    chunk_length,
    is_aged,
    is_short,
    plan,
    urgency,
)
from ds4_daemon.sched.sampling import Sampling
from ds4_daemon.sched.sequence import Client, Priority, Sequence, State
from hypothesis import given, settings
from hypothesis import strategies as st

STEP_S = 0.1
UNITS = 4  # of a chunk; a slice is one of them
few = settings(max_examples=60, deadline=None)

requests = st.builds(
    lambda client, prompt, answer, priority, arrived, need: Sequence(
        "",
        array("i", bytes(4 * prompt)),
        Sampling(),
        answer,
        client=Client(client),
        priority=priority,
        arrived_s=arrived * STEP_S,
        need_bytes=need,
    ),
    st.sampled_from("abc"),
    st.integers(1, 3000),
    st.integers(1, 20),
    st.sampled_from([0, *Priority]),
    st.integers(0, 50),
    st.integers(0, 100),
)
traffic = st.lists(requests, min_size=1, max_size=24)


class Simulation:
    """Admits and runs requests as the engine does; each step takes STEP_S."""

    def __init__(
        self, limits: Limits, ledger: Ledger | None = None, memory_bytes: int | None = None
    ) -> None:
        self.limits = limits
        self.ledger = ledger or Ledger()
        self.memory_bytes = memory_bytes
        self.now_s = 0.0
        self.steps = 0
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []
        self.cuts: dict[Sequence, list[tuple[int, int]]] = defaultdict(list)
        self.longest_gap_s: dict[Sequence, float] = defaultdict(float)
        self._units: Counter[Sequence] = Counter()

    def step(self, arrivals: list[Sequence] | None = None) -> None:
        self.waiting += arrivals or []
        self.ledger.activate(s.client.name for s in (*self.waiting, *self.running))
        self._admit()
        step = plan(self.running, self.limits, self.ledger, self.now_s, STEP_S / 2)
        decoding = [s for s in self.running if s.state is State.DECODE]
        assert len(step.decode) == min(len(decoding), self.limits.max_running)
        assert len(set(step.decode)) == len(step.decode)
        prefilling = [s for s in self.running if s.state is State.PREFILL]
        slices = [part for part in (step.prefill, step.beside) if part is not None]
        enough = 1 if step.decode else self.limits.threads
        assert len(slices) >= min(len(prefilling), enough), "work conserving"
        assert len({part.sequence for part in slices}) == len(slices) <= self.limits.threads
        self._check_budgets(step, [s for s in prefilling if is_short(s)])
        self.steps += 1
        self.now_s += STEP_S
        for s in step.decode:
            self._served(s)
            self.ledger.serve(s.client.name, DECODED_TOKEN_WORK)
            s.computed_tokens += 1
            self._chose(s)
        for s, tokens, last, _ in slices:
            assert last == (s.computed_tokens + tokens == s.prompt_tokens)
            self.ledger.turn(short=is_short(s), aged=is_aged(s, self.now_s - STEP_S))
            self._served(s)
            self._units[s] += 1
            if self._units[s] % UNITS == 0:
                self.cuts[s].append((s.computed_tokens, tokens))
                self.ledger.serve(s.client.name, tokens)
                s.computed_tokens += tokens
                if last:
                    s.state = State.DECODE
                    self._chose(s)
        self.running = [s for s in self.running if s.state is not State.DONE]

    def _check_budgets(self, step: StepPlan, short: list[Sequence]) -> None:
        budget_s = 0.0 if step.prefill is None else step.prefill.budget_s
        if step.beside is not None:
            bound = step.decode and step.beside.sequence not in short
            most_s = BESIDE_SHARE * STEP_S / 2 + budget_s if bound else math.inf
            assert step.beside.budget_s == most_s
        if step.prefill is None:
            return
        if not step.decode:
            assert budget_s == MAX_SLICE_S
        elif self.limits.threads == 1:
            assert budget_s >= SLICE_SHARE * STEP_S / 2
            assert budget_s <= max(SLICE_SHARE, len(short) / len(step.decode)) * STEP_S / 2
        else:
            assert step.beside is not None
            assert step.prefill.sequence in short
            assert budget_s <= len(short) / len(step.decode) * STEP_S / 2

    def _admit(self) -> None:
        headroom = None
        if self.memory_bytes is not None:
            headroom = self.memory_bytes - sum(s.need_bytes for s in self.running)
        admitted = admit(self.waiting, self.running, self.limits, self.ledger, self.now_s, headroom)
        if headroom is not None:
            assert sum(s.need_bytes for s in admitted) <= headroom
        for s in admitted:
            self.waiting.remove(s)
            s.state = State.PREFILL
            self._served(s)
        self.running += admitted
        assert len(self.running) <= 3 * self.limits.max_running
        by_client = Counter(s.client.name for s in self.running)
        for name, count in by_client.items():
            assert count <= (self.ledger.of(name).max_running or count)
        if self.waiting and self.memory_bytes is None and not self.ledger.terms:
            assert len(self.running) >= self.limits.max_running, "no slot is left free"

    def _served(self, s: Sequence) -> None:
        gap_s = self.now_s - max(s.served_s, s.arrived_s)
        self.longest_gap_s[s] = max(self.longest_gap_s[s], gap_s)
        s.served_s, s.last_step = self.now_s, self.steps

    def _chose(self, s: Sequence) -> None:
        s.ids.append(0)
        if s.generated_tokens == s.max_tokens:
            s.state = State.DONE

    def run(self, requests: list[Sequence], most_steps: int = 20_000) -> None:
        """All of them, as they arrive, to their ends."""
        left = sorted(requests, key=lambda s: s.arrived_s)
        while left or self.waiting or self.running:
            assert self.steps < most_steps, "somebody starves"
            due = [s for s in left if s.arrived_s <= self.now_s]
            left = left[len(due) :]
            self.step(due)


def request(client: str, prompt: int, answer: int = 5, **more: Any) -> Sequence:
    return Sequence(
        "", array("i", bytes(4 * prompt)), Sampling(), answer, client=Client(client), **more
    )


threads = st.integers(1, 2)


@few
@given(traffic, st.integers(1, 4), threads)
def test_all_traffic_ends_within_its_budgets(
    requests: list[Sequence], slots: int, threads: int
) -> None:
    """Every request ends; each step decodes as many as may be and goes on with a prompt, or two."""
    simulation = Simulation(Limits(slots, 512, threads))
    simulation.run(requests)
    assert all(s.generated_tokens == s.max_tokens for s in requests)


@few
@given(traffic, st.integers(100, 400), st.integers(1, 2))
def test_memory_and_client_limits_hold(
    requests: list[Sequence], memory_bytes: int, most: int
) -> None:
    """Nobody is admitted beyond the memory or the client's limit, and all end nevertheless."""
    ledger = Ledger({"a": ClientTerms(max_running=most), "b": ClientTerms(weight=3)})
    Simulation(Limits(4, 512), ledger, memory_bytes).run(requests)
    assert all(s.generated_tokens == s.max_tokens for s in requests)


@few
@given(traffic, threads)
def test_chunks_do_not_depend_on_company(requests: list[Sequence], threads: int) -> None:
    """A prompt is cut at the same positions whatever runs beside it."""
    simulation = Simulation(Limits(3, 512, threads))
    simulation.run(requests)
    for s in requests:
        alone, at = [], 0
        while at < s.prompt_tokens:
            alone.append((at, chunk_length(at, s.prompt_tokens, 512)))
            at += alone[-1][1]
        assert simulation.cuts[s] == alone


@few
@given(st.sampled_from([Priority.NORMAL, Priority.BACKGROUND]), st.integers(1, 3000), threads)
def test_a_flood_of_urgent_requests_starves_nobody(
    priority: Priority, prompt: int, threads: int
) -> None:
    """Beside interactive requests without end, less urgent ones have turns at a known distance."""
    simulation = Simulation(Limits(2, 512, threads))
    victim = request("victim", prompt, 3, priority=priority)
    simulation.step([victim])
    while victim.state is not State.DONE:
        assert simulation.steps < 20_000, "it starves"
        missing = 4 - len(simulation.waiting)
        simulation.step(
            [
                request("flood", 600, 5, priority=Priority.INTERACTIVE, arrived_s=simulation.now_s)
                for _ in range(missing)
            ]
        )
    # Its patience, and then a quantum's worth of turns of those that are level with it.
    bound_s = sum(PATIENCE_S.values()) + 2 * UNITS * QUANTUM_WORK / 512 * STEP_S
    assert simulation.longest_gap_s[victim] <= bound_s


@settings(max_examples=12, deadline=None)
@given(st.floats(0.25, 4.0), threads)
def test_work_is_shared_by_weight(weight: float, threads: int) -> None:
    """Two clients that always want more get work as their weights are, within a quantum or two."""
    ledger = Ledger({"b": ClientTerms(weight)})
    simulation = Simulation(Limits(2, 512, threads), ledger)
    work: Counter[str] = Counter()
    for _ in range(1500):
        for name in "ab":
            if not any(s.client.name == name for s in simulation.waiting):
                simulation.waiting.append(request(name, 900, 2, arrived_s=simulation.now_s))
        simulation.step()
    for s, cuts in simulation.cuts.items():
        work[s.client.name] += sum(tokens for _, tokens in cuts)
    assert abs(work["b"] / weight - work["a"]) <= 3 * QUANTUM_WORK / min(weight, 1)


def test_a_short_prompt_goes_between_the_slices_of_a_long_one() -> None:
    """A line that arrives during a long prefill of another client has every other turn."""
    simulation = Simulation(Limits(8, 512))
    simulation.step([request("long", 8000)])
    short = request("short", 20, 1, arrived_s=simulation.now_s)
    before = simulation.steps
    simulation.step([short])
    while short.state is not State.DONE:
        simulation.step()
    assert simulation.steps - before <= 2 * UNITS


def test_short_prompts_without_end_leave_a_long_one_its_turns() -> None:
    """Nearly half of the slices stay with a long prompt beside a stream of short ones."""
    simulation = Simulation(Limits(8, 512))
    long = request("long", 8000, 1)
    simulation.step([long])
    while long.state is not State.DONE:
        simulation.step([request("short", 20, 1, arrived_s=simulation.now_s)])
    assert simulation.steps <= 2.5 * UNITS * 16  # those that wait for two seconds go first, too


def running(state: State, prompt: int, count: int = 1, **more: Any) -> list[Sequence]:
    made = [request("a", prompt, **more) for _ in range(count)]
    for s in made:
        s.state = state
    return made


def test_short_prompts_that_wait_count_like_streams() -> None:
    """Eight that come at once soon decode together: few streams leave most of the time to them."""
    streams, short = running(State.DECODE, 10, 2), running(State.PREFILL, 100, 6)
    one = plan([*streams, *short], Limits(8, 512), Ledger(), 0.0, 0.01)
    assert one.prefill is not None
    assert one.prefill.budget_s == 0.01 * 6 / 2
    two = plan([*streams, *short], Limits(8, 512, 2), Ledger(), 0.0, 0.01)
    assert two.prefill is not None
    assert two.beside is not None
    assert two.prefill.budget_s == 0.01 * 6 / 2


def test_prompts_take_no_time_from_streams_that_are_more_urgent_or_while_long() -> None:
    """Neither background lines nor documents pause a stream where there is a second thread."""
    stream = running(State.DECODE, 10)
    for others in (
        running(State.PREFILL, 100, 4, priority=Priority.BACKGROUND),
        running(State.PREFILL, 4000, 4),
    ):
        step = plan([*stream, *others], Limits(8, 512, 2), Ledger(), 0.0, 0.01)
        assert step.prefill is None
        assert step.beside is not None


def test_two_threads_take_a_prompt_of_each_lane() -> None:
    """With nobody decoding, a long prompt and a short one go on at once, whoever is more."""
    long, short = running(State.PREFILL, 4000, 3), running(State.PREFILL, 100, 3)
    for last_was_short in (False, True):
        ledger = Ledger(short_turn=last_was_short)
        step = plan([*long, *short], Limits(8, 512, 2), ledger, 0.0)
        assert step.prefill is not None
        assert step.beside is not None
        lanes = [is_short(part.sequence) for part in (step.prefill, step.beside)]
        assert lanes == [not last_was_short, last_was_short]


def test_many_that_waited_long_leave_urgent_ones_most_turns() -> None:
    """A crowd of normal prompts whose patience ends does not hold up an interactive one."""
    simulation = Simulation(Limits(16, 512))
    simulation.step([request(f"n{i}", 30_000, 1) for i in range(12)])
    for _ in range(50):
        simulation.step()
    urgent = request("i", 5120, 1, priority=Priority.INTERACTIVE, arrived_s=simulation.now_s)
    before = simulation.steps
    simulation.step([urgent])
    while urgent.state is not State.DONE:
        simulation.step()
    assert simulation.steps - before <= 10 * UNITS * 4 / 3 + 4


def test_a_client_with_less_than_its_share_is_let_in() -> None:
    """Long answers that fill all slots keep another client out neither of them nor of the batch."""
    simulation = Simulation(Limits(4, 512))
    simulation.step([request("greedy", 10, 10_000) for _ in range(8)])
    for _ in range(40):
        simulation.step()
    late = request("late", 10, 50, arrived_s=simulation.now_s)
    began = simulation.steps
    simulation.step([late])
    while late.state is not State.DONE:
        simulation.step()
    assert simulation.steps - began <= 75  # four of five steps until the others are a quantum ahead


def test_background_keeps_nobody_out() -> None:
    """With every slot taken by background work, a normal request starts at once."""
    simulation = Simulation(Limits(2, 512))
    simulation.step([request("b", 10, 10_000, priority=Priority.BACKGROUND) for _ in range(6)])
    assert len(simulation.running) == 2
    normal = request("n", 10, 5)
    simulation.step([normal])
    assert normal in simulation.running


def test_a_large_request_is_passed_for_a_while_only() -> None:
    """Smaller ones go before one that waits for memory, and then it has its turn."""
    large = request("a", 10, need_bytes=100)
    small = request("b", 10, need_bytes=10)
    limits, ledger = Limits(8, 512), Ledger()
    assert admit([large, small], [], limits, ledger, 0.0, 50) == [small]
    assert admit([large, small], [], limits, ledger, PASSED_S + 1, 50) == []
    assert admit([large, small], [], limits, ledger, PASSED_S + 1, 110) == [large, small]


def test_urgency_grows_with_waiting() -> None:
    """Whoever got nothing for the patience of its class counts as one of the class above."""
    s = request("a", 1, priority=Priority.BACKGROUND)
    s.state = State.DECODE
    assert urgency(s, 9.9) is Priority.BACKGROUND
    assert urgency(s, 10.0) is Priority.NORMAL
    assert urgency(s, 12.0) is Priority.INTERACTIVE
    s.served_s = 12.0
    assert urgency(s, 13.0) is Priority.BACKGROUND


def test_planning_changes_nothing() -> None:
    """The policy is a function: the same counters give the same plan again."""
    sequences = [request("a", 30), request("b", 30)]
    for s in sequences:
        s.state = State.PREFILL
    ledger = Ledger()
    assert plan(sequences, Limits(8, 10), ledger, 1.0) == plan(
        sequences, Limits(8, 10), ledger, 1.0
    )
    assert plan([], Limits(8, 10), ledger, 1.0) == StepPlan()


def test_nobody_saves_up_while_idle() -> None:
    """A client that comes back begins level with the least of those that stayed, or as it left."""
    ledger = Ledger()
    ledger.activate("ab")
    ledger.serve("a", 1000)
    ledger.serve("b", 3000)
    ledger.activate("abc")
    assert ledger.served("c") == 1000
    ledger.activate("ac")
    ledger.serve("a", 500)
    ledger.serve("c", 400)
    ledger.activate("abc")
    assert ledger.served("b") == 3000, "what it is ahead stays"
    ledger.activate("")
    ledger.activate("d")
    assert ledger.served("d") == 0
