"""What the engine runs next: pure functions of counters, the ledger and the clock.

`admit` chooses who gets a session, `plan` what the next step runs: one token of each sequence of
the decode batch, and a slice of one sequence's chunk of prompt. Between clients the one with the
least virtual time goes first; before that comes urgency, and prompts of a chunk or less have a lane
of their own. Knows no array, changes nothing. Called by `engine` once a step.

Nobody starves. Of two clients that want the same turn, the one that is a quantum of work behind
goes first; short prompts and the others alternate; and who got nothing for the patience of its
class (PATIENCE_S, or WAITING_PATIENCE_S before it runs) has its next turn as one of the class
above. So a background request has a turn of the most urgent class at least every 12 seconds.
"""

import math
from collections import Counter
from collections.abc import Iterable
from collections.abc import Sequence as Items
from typing import NamedTuple

from ds4_daemon.sched.ledger import Ledger
from ds4_daemon.sched.sequence import Priority, Sequence, State

# Turns this far apart keep a normal request moving beside any number of interactive ones, and a
# background job alive, and cost the others a few percent.
PATIENCE_S = {Priority.NORMAL: 2.0, Priority.BACKGROUND: 10.0}
WAITING_PATIENCE_S = 60.0  # a class: what waits holds nothing, and most of it is served by then
# Prefill turns of requests that are urgent by themselves between two of such that became so. Not
# one, for short prompts have every other turn.
OWN_TURNS = 3
# Within so much work of each other clients are served in the order they came: taking turns at every
# token would have all long prompts end late, and none early.
QUANTUM_WORK = 2048
# A prompt of which no more is to compute is short. A few lines and their answer, not a document.
SHORT_TOKENS = 512
# Of a decode step's time goes to a slice beside it at most, if one unit of the pass takes no more:
# streams then pause less than twice as long as without it, and the prefill takes two to three
# times as long as alone, for slices end where no further unit fits.
SLICE_SHARE = 0.9
# With nobody decoding a slice only has to end soon enough for a cancel and for progress.
MAX_SLICE_S = 0.25
# On a second thread a slice ends with what runs on the first. One of a long prompt beside a decode
# step ends also where a further unit would end later than so many times the step alone: about what
# two threads take of each other on idle cores. On busy ones streams would wait more than twice as
# long else.
BESIDE_SHARE = 1.5
_NO_BUDGET_S = math.inf
# A request that does not fit in memory is passed by smaller ones for so long, and then by none.
PASSED_S = 5.0


class Limits(NamedTuple):
    """Budgets of a step."""

    max_running: int  # sequences that a step decodes
    chunk_tokens: int  # most prompt tokens computed at once; chunks end at its multiples
    threads: int = 1  # that compute at once: 1, or 2 where a prompt may go on beside a decode step


class Slice(NamedTuple):
    """Run the chunk of `tokens` pending ids of `sequence`, or go on with it, for about `budget_s`.

    At least one unit of it is run. `last`: no ids are pending after the chunk.
    """

    sequence: Sequence
    tokens: int
    last: bool
    budget_s: float


class StepPlan(NamedTuple):
    """What one step runs: a token of each, then a slice; and beside both, on a second thread, one
    of another sequence. All empty: there is nothing to do."""

    decode: tuple[Sequence, ...] = ()
    prefill: Slice | None = None
    beside: Slice | None = None


def admit(
    waiting: Iterable[Sequence],
    running: Iterable[Sequence],
    limits: Limits,
    ledger: Ledger,
    now_s: float,
    headroom_bytes: int | None = None,
) -> list[Sequence]:
    """Who of those that wait gets a session now, first come first; `headroom_bytes` None: no limit.

    Background never keeps others out: it has up to `max_running` sessions of its own, taken while
    fewer than that run in all. A client with less than its share of slots is let in above
    `max_running`, up to twice as many. What exceeds a step's batch takes turns in it.
    """
    ordered = order(waiting, ledger, now_s)
    held = list(running)
    admitted: list[Sequence] = []
    by_client = Counter(s.client.name for s in held)
    present = {s.client.name for s in (*held, *ordered)}
    weights = sum(ledger.of(name).weight for name in present)
    closed = False  # somebody waits for memory whom nobody may pass
    for sequence in ordered:
        name = sequence.client.name
        terms = ledger.of(name)
        if terms.max_running is not None and by_client[name] >= terms.max_running:
            continue
        share = limits.max_running * terms.weight / weights
        if not _has_slot(sequence, held, limits, by_client[name] < max(1.0, share), now_s):
            continue
        if headroom_bytes is not None:
            if closed or sequence.need_bytes > headroom_bytes:
                closed = closed or now_s - sequence.arrived_s > PASSED_S
                continue
            headroom_bytes -= sequence.need_bytes
        admitted.append(sequence)
        held.append(sequence)
        by_client[name] += 1
    return admitted


def plan(
    running: Iterable[Sequence],
    limits: Limits,
    ledger: Ledger,
    now_s: float,
    decode_step_s: float | None = None,
) -> StepPlan:
    """The next step over the sequences that hold a session.

    `decode_step_s`: what a decode step of these takes alone, None while that was not measured.
    """
    decoding: list[Sequence] = []
    prefilling: list[Sequence] = []
    for sequence in running:
        if sequence.state is State.DECODE:
            decoding.append(sequence)
        elif sequence.state is State.PREFILL:
            prefilling.append(sequence)
    if len(decoding) > limits.max_running:
        decoding.sort(key=lambda s: (*_share(s, ledger, now_s), s.last_step))
        del decoding[limits.max_running :]
    if not prefilling:
        return StepPlan(tuple(decoding))
    turn = _prefill_turn(prefilling, ledger, now_s, short_turn=ledger.short_turn)
    others = [s for s in prefilling if s is not turn]
    if not decoding:
        only = _slice(turn, limits, MAX_SLICE_S)
        if not others or limits.threads == 1:
            return StepPlan(prefill=only)
        second = _prefill_turn(others, ledger, now_s, short_turn=is_short(turn))
        return StepPlan(prefill=only, beside=_slice(second, limits, _NO_BUDGET_S))
    step_s = decode_step_s or 0.0
    least = min(urgency(s, now_s) for s in decoding)
    short = [s for s in others if is_short(s) and urgency(s, now_s) <= least]
    share = (len(short) + is_short(turn)) / len(decoding)  # each counts like a stream
    if limits.threads == 1:
        budget_s = max(SLICE_SHARE, share) * step_s
        return StepPlan(tuple(decoding), _slice(turn, limits, budget_s))
    first, first_s = None, 0.0
    if short:
        second = _prefill_turn(short, ledger, now_s, short_turn=is_short(turn))
        first_s = share * step_s
        first = _slice(second, limits, first_s)
    unbound = decode_step_s is None or is_short(turn)  # what is short soon decodes with them
    beside_s = _NO_BUDGET_S if unbound else BESIDE_SHARE * step_s + first_s
    return StepPlan(tuple(decoding), first, _slice(turn, limits, beside_s))


def _slice(turn: Sequence, limits: Limits, budget_s: float) -> Slice:
    tokens = chunk_length(turn.computed_tokens, turn.prompt_tokens, limits.chunk_tokens, turn.cuts)
    return Slice(turn, tokens, tokens == turn.pending_tokens, budget_s)


def order(sequences: Iterable[Sequence], ledger: Ledger, now_s: float) -> list[Sequence]:
    """By whose turn it is: urgency, the fair share, short prompts, arrival."""
    return sorted(
        sequences, key=lambda s: (*_share(s, ledger, now_s), not is_short(s), s.arrived_s)
    )


def chunk_length(computed: int, prompt: int, chunk: int, cuts: Items[int] = ()) -> int:
    """Tokens from `computed` to the next multiple of `chunk`, the next cut or the prompt's end.

    All are absolute positions, so a prompt is computed by the same chunks, and to the same bits,
    whatever runs beside it and wherever a restored prefix ends.
    """
    stop = min((computed // chunk + 1) * chunk, prompt)
    return min([stop, *(cut for cut in cuts if cut > computed)]) - computed


def _prefill_turn(
    prefilling: list[Sequence], ledger: Ledger, now_s: float, *, short_turn: bool
) -> Sequence:
    """Whose chunk goes on. Nothing else than more urgent work keeps a lane from its turn.

    `short_turn`: the turn before was one of the lane for short prompts.
    """
    ordered = order(prefilling, ledger, now_s)
    urgent = [s for s in ordered if urgency(s, now_s) == urgency(ordered[0], now_s)]
    if ledger.turns_since_aged < OWN_TURNS:
        urgent = [s for s in urgent if not is_aged(s, now_s)] or urgent
    short = next((s for s in urgent if is_short(s)), None)
    long = next((s for s in urgent if not is_short(s)), None)
    if short is None or long is None:
        return urgent[0]
    return long if short_turn else short


def is_aged(sequence: Sequence, now_s: float) -> bool:
    """Whether it is more urgent than it said, for it got nothing for long."""
    return urgency(sequence, now_s) < (sequence.priority or Priority.NORMAL)


def urgency(sequence: Sequence, now_s: float) -> Priority:
    """Its class now: one or two above its own when it got nothing for long."""
    priority = Priority(sequence.priority or Priority.NORMAL)
    unserved_s = now_s - max(sequence.arrived_s, sequence.served_s)
    while priority is not Priority.INTERACTIVE:
        waits = sequence.state is State.WAITING
        unserved_s -= WAITING_PATIENCE_S if waits else PATIENCE_S[priority]
        if unserved_s < 0:
            break
        priority = Priority(priority - 1)
    return priority


def _share(sequence: Sequence, ledger: Ledger, now_s: float) -> tuple[Priority, int]:
    served = ledger.served(sequence.client.name)
    return urgency(sequence, now_s), int(served // QUANTUM_WORK)


def is_short(sequence: Sequence) -> bool:
    """Whether so little of its prompt is to compute that it has the lane."""
    return sequence.prompt_tokens - sequence.cached_tokens <= SHORT_TOKENS


def _has_slot(
    sequence: Sequence, held: list[Sequence], limits: Limits, below_share: bool, now_s: float
) -> bool:
    most = limits.max_running
    background = sum(s.priority == Priority.BACKGROUND for s in held)
    if sequence.priority == Priority.BACKGROUND:
        aged = urgency(sequence, now_s) is not Priority.BACKGROUND
        return background < most and (aged or len(held) < most)
    return len(held) - background < (2 * most if below_share else most)
