"""When a request gets its first token: what goes before it, at the measured speeds.

A pure function of counters and rates, with the shares that `policy` gives. An estimate: requests
that come later, and answers that end early, are not known. Called by `engine` for progress.
"""

from collections.abc import Sequence as Items

from ds4_daemon.sched.policy import SHORT_TOKENS, SLICE_SHARE, Limits
from ds4_daemon.sched.rates import Rates
from ds4_daemon.sched.sequence import Sequence, State

# Beside streams a prefill has its slice's share of the time, or a thread of its own, which they
# slow down: by 1.4 where its speed was measured alone, by nothing where beside them.
_STRETCH = (1 + SLICE_SHARE) / SLICE_SHARE
_STRETCH_BESIDE = 1.2


def first_token_s(
    sequence: Sequence,
    before: Items[Sequence],
    running: Items[Sequence],
    limits: Limits,
    rates: Rates,
    cached_tokens: int = 0,
) -> float | None:
    """Seconds from now, 0 once it is there; None while no speed was measured.

    `before`: those that wait and go first. `cached_tokens`: of a prompt that waits, what will not
    be computed.
    """
    if sequence.first_token_s is not None:
        return 0.0
    own_s = _left_s(sequence, rates, cached_tokens)
    if own_s is None:
        return None
    decoding = [s for s in running if s.state is State.DECODE and s is not sequence]
    others = [s for s in running if s.state is State.PREFILL and s is not sequence]
    short = _is_short(sequence, cached_tokens)
    work_s = own_s
    for other in (*others, *before):
        left_s = _left_s(other, rates) or 0.0
        if short and not _is_short(other):
            left_s = min(left_s, own_s)  # the lane has every other turn
        elif other.arrived_s > sequence.arrived_s and not _is_short(other):
            continue
        work_s += left_s
    wait_s = 0.0
    if sequence.state is State.WAITING:
        wait_s = _slot_s(len(before), running, limits, rates)
    stretch = _STRETCH if limits.threads == 1 else _STRETCH_BESIDE
    return wait_s + work_s * (stretch if decoding else 1.0)


def _slot_s(place: int, running: Items[Sequence], limits: Limits, rates: Rates) -> float:
    """Until so many of those that run end, and one more, if all say what they may."""
    missing = len(running) + place + 1 - limits.max_running
    if missing <= 0 or not running:
        return 0.0
    left = sorted(s.max_tokens - s.generated_tokens for s in running)
    tokens = left[min(missing, len(left)) - 1]
    return tokens * (rates.decode_s(min(len(running), limits.max_running)) or 0.0)


def _left_s(sequence: Sequence, rates: Rates, cached_tokens: int = 0) -> float | None:
    """The work of the rest of its prompt."""
    return rates.prefill_s(max(sequence.prefilled_tokens, cached_tokens), sequence.prompt_tokens)


def _is_short(sequence: Sequence, cached_tokens: int = 0) -> bool:
    cached = max(sequence.cached_tokens, cached_tokens)
    return sequence.prompt_tokens - cached <= SHORT_TOKENS
