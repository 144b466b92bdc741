"""What is trained when: phases, row lengths, learning rate and switches by the share of time used.

The schedule is driven by the clock, because the machine is rented by the minute.
"""

from typing import NamedTuple

WARM_UP_STEPS = 200
DECAY_FROM = 0.65
_LONG_EVERY = 4  # of phase B's steps, one has the longest rows


class Stage(NamedTuple):
    """A phase of the mixture and the row lengths it takes turns with."""

    phase: str
    until: float  # share of the time
    sequences: tuple[int, ...]


STAGES = (
    Stage("A", 0.45, (1024,)),
    Stage("B", 0.80, (4096,) * (_LONG_EVERY - 1) + (8192,)),
    Stage("C", 1.0, (4096, 4096, 8192)),
)
QUANTIZED_FROM = 0.85
SPARSE_FROM = 0.88  # the indexer's choice, and keys as the cache rounds them


def stage_at(progress: float, stages: tuple[Stage, ...] = STAGES) -> int:
    """Index of the stage that `progress` (0 to 1) falls in."""
    return next((i for i, s in enumerate(stages) if progress < s.until), len(stages) - 1)


def rate(progress: float, step: int) -> float:
    """The learning rate as a share of its peak."""
    warm = min(1.0, (step + 1) / WARM_UP_STEPS)
    return warm * min(1.0, max(0.0, (1 - progress) / (1 - DECAY_FROM)))
