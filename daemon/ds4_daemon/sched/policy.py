"""What the engine runs next: `plan(sequences, limits)`, a pure function of counters.

Round robin at token granularity: a step takes one token of every decoding sequence and one chunk
of the one prefilling sequence that waited longest for its turn. Knows counts and budgets, never an
array; changes nothing. Called by `engine.loop` once a step.
"""

from collections.abc import Iterable
from collections.abc import Sequence as Items
from typing import NamedTuple

from ds4_daemon.sched.sequence import Sequence, State


class Limits(NamedTuple):
    """Budgets of a step."""

    max_running: int  # sequences that hold a session at once
    chunk_tokens: int  # most prompt tokens of a step; chunks end at its multiples


class Slice(NamedTuple):
    """Run `tokens` pending ids of `sequence`; `last` when none are pending after them."""

    sequence: Sequence
    tokens: int
    last: bool


class StepPlan(NamedTuple):
    """What one step runs. Empty: there is nothing to do."""

    slices: tuple[Slice, ...]


def plan(sequences: Iterable[Sequence], limits: Limits) -> StepPlan:
    """The next step over the sequences that hold a session, in their order."""
    slices: list[Slice] = []
    prefilling: list[Sequence] = []
    for sequence in sequences:
        if sequence.state is State.DECODE:
            slices.append(Slice(sequence, 1, True))
        elif sequence.state is State.PREFILL:
            prefilling.append(sequence)
    if prefilling:
        # min takes the first of equals, so of sequences that had no turn yet the oldest goes first.
        turn = min(prefilling, key=lambda s: s.last_prefill_step)
        tokens = chunk_length(
            turn.computed_tokens, turn.prompt_tokens, limits.chunk_tokens, turn.cuts
        )
        slices.append(Slice(turn, tokens, tokens == turn.pending_tokens))
    return StepPlan(tuple(slices))


def chunk_length(computed: int, prompt: int, chunk: int, cuts: Items[int] = ()) -> int:
    """Tokens from `computed` to the next multiple of `chunk`, the next cut or the prompt's end.

    All are absolute positions, so a prompt is computed by the same chunks, and to the same bits,
    whatever runs beside it and wherever a restored prefix ends.
    """
    stop = min((computed // chunk + 1) * chunk, prompt)
    return min([stop, *(cut for cut in cuts if cut > computed)]) - computed
