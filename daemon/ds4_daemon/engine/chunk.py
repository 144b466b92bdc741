"""Slices of a prompt's chunk, on the engine's thread or on a second one beside it.

A slice goes on with a pass through the model, unit by unit. What runs beside it touches neither its
pass nor its session; everything else about sessions happens while no slice runs. Knows no queue and
no plan. Used by `engine.step` alone.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ds4_daemon.sched.policy import Slice


class Pass(Protocol):
    """What the engine needs of `model.network.Pass`."""

    units: int
    done_units: int
    results: list[NDArray[np.float32] | None]

    def advance(self, units: int) -> bool: ...

    def wait(self) -> None: ...


@dataclass(slots=True)
class Chunk:
    """A pass that is under way, and the seconds that each of its units took."""

    run: Pass
    units_s: list[float] = field(default_factory=list)

    @property
    def done(self) -> bool:
        return self.run.done_units == self.run.units

    def advance(self) -> None:
        """One unit. Raises what the model raises."""
        began_s = time.monotonic()
        self.run.advance(1)
        self.run.wait()  # else the time of a slice would be paid by the next decode step
        self.units_s.append(time.monotonic() - began_s)

    def next_s(self, known: list[float]) -> float:
        """How long the next unit will take: as long as the one in its place of a `known` chunk."""
        known = known or self.units_s
        return known[self.run.done_units * len(known) // self.run.units]


@dataclass(slots=True, eq=False)
class Turn:
    """One slice: what it is of, and what came of it. `stop` is set from another thread."""

    part: Slice
    chunk: Chunk | None = None  # None: it could not begin
    error: Exception | None = None
    took_s: float = 0.0
    stop: bool = False  # to end after the present unit

    @property
    def ended(self) -> bool:
        """Nothing is left of its chunk."""
        return self.error is not None or self.chunk is None or self.chunk.done

    def run(self, known: list[float], enough: Callable[[], bool] = lambda: False) -> None:
        """At least one unit, and more until the budget's end, `stop`, or `enough`.

        `known`: seconds of the units of a chunk before. What the model raises is kept in `error`.
        """
        began_s = time.monotonic()
        try:
            if self.chunk is not None:
                self.chunk.advance()
                # A unit that would end too late waits for the next step, where it may be the only
                # one.
                while not (self.chunk.done or self.stop or enough()) and (
                    time.monotonic() - began_s + self.chunk.next_s(known) <= self.part.budget_s
                ):
                    self.chunk.advance()
        except Exception as error:  # noqa: BLE001 (whatever a model raises ends one sequence only)
            self.error = error
        self.took_s = time.monotonic() - began_s


class SecondThread:
    """Does one piece of work at a time, beside the thread that gives it."""

    def __init__(self) -> None:
        self._given: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._done: SimpleQueue[None] = SimpleQueue()
        self._thread: threading.Thread | None = None

    def start(self, work: Callable[[], None]) -> None:
        """Begin it; it may raise nothing. To be followed by `join`."""
        if self._thread is None:
            # A daemon thread, as the engine's: no step keeps the process from leaving.
            self._thread = threading.Thread(target=self._run, name="engine-2", daemon=True)
            self._thread.start()
        self._given.put(work)

    def join(self) -> None:
        """Until what was begun is done."""
        self._done.get()

    def close(self) -> None:
        """End the thread, once it has done what it has."""
        self._given.put(None)

    def _run(self) -> None:
        while (work := self._given.get()) is not None:
            work()
            self._done.put(None)
