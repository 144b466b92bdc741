"""Runs one step on the model: a plan in, chosen tokens out.

The session (the model's live state) of every running sequence is `prefix`'s, which is told of each
step. Knows neither clients nor queues nor why the plan is what it is. Used by `engine.loop` alone,
on the engine's thread.
"""

import time
from collections.abc import Sequence as Items
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from ds4_daemon.engine.prefix import Prefixes
from ds4_daemon.engine.sampler import Choice, choose
from ds4_daemon.errors import DaemonError, EngineError
from ds4_daemon.model.network import Segment, Want
from ds4_daemon.model.state import SessionState
from ds4_daemon.sched.policy import Slice, StepPlan
from ds4_daemon.sched.sampling import Sampling
from ds4_daemon.sched.sequence import Finish, Sequence, State


class Model(Protocol):
    """What the engine needs of `model.network.Network`."""

    device: str
    dtype: str
    rounding: bool
    weights_bytes: int

    def new_state(self) -> SessionState: ...

    def forward(self, batch: Items[Segment]) -> list[NDArray[np.float32] | None]: ...


class Outcome(NamedTuple):
    """What a step did for one sequence: it chose a token, or computed a chunk, or failed."""

    sequence: Sequence
    choice: Choice | None = None
    error: DaemonError | None = None


class Stepper:
    """The model and the sessions on it."""

    def __init__(self, model: Model, prefixes: Prefixes) -> None:
        self._model = model
        self.prefixes = prefixes

    def warm_up(self, token_id: int) -> None:
        """Decode one token, so that what compiles does it now and a broken model fails now."""
        segment = Segment(self._model.new_state(), np.array([token_id], np.int32), Want.LAST)
        choose(_row(self._model.forward([segment])[0]), Sampling(), 1)

    def open(self, sequence: Sequence) -> None:
        """Give it a session, at once or through `poll`."""
        self.prefixes.sync(sequence)

    def poll(self) -> None:
        """Let sequences go on whose prefix was restored meanwhile."""
        self.prefixes.poll()

    def close(self, sequence: Sequence) -> None:
        """Give its session back; of what failed nothing is kept."""
        self.prefixes.close(sequence, failed=sequence.finish is Finish.ERROR)
        sequence.state = State.DONE
        sequence.state_bytes = 0

    def run(self, step: StepPlan, number: int) -> list[Outcome]:
        """Advance every slice's sequence; `number` is the step's, for turns.

        Tokens and the prefill chunk go apart, so that a chunk that fails ends no running answer.
        """
        chunks = [part for part in step.slices if part.sequence.state is State.PREFILL]
        tokens = [part for part in step.slices if part.sequence.state is not State.PREFILL]
        return [o for part in (tokens, chunks) if part for o in self._advance(part, number)]

    def _advance(self, slices: Items[Slice], number: int) -> list[Outcome]:
        """One call of the model. When it raises, all its sessions are in doubt, and all fail."""
        batch = [
            Segment(
                self.prefixes.state(sequence),
                np.frombuffer(
                    sequence.ids[sequence.computed_tokens : sequence.computed_tokens + tokens],
                    dtype=np.int32,
                ),
                Want.LAST if last else Want.NONE,
            )
            for sequence, tokens, last in slices
        ]
        try:
            rows = self._model.forward(batch)
        except Exception as error:  # noqa: BLE001 (whatever a model raises ends its sequences only)
            return [self._failed(part.sequence, _failure(error)) for part in slices]
        outcomes: list[Outcome] = []
        for (sequence, tokens, last), row in zip(slices, rows, strict=True):
            if sequence.state is State.PREFILL:
                sequence.last_prefill_step = number
            sequence.computed_tokens += tokens
            sequence.state_bytes = self.prefixes.state(sequence).nbytes
            outcome = _sample(sequence, row) if last else Outcome(sequence)
            if outcome.error is not None:
                outcomes.append(self._failed(sequence, outcome.error))
                continue
            self.prefixes.advanced(sequence)
            outcomes.append(outcome)
        return outcomes

    def _failed(self, sequence: Sequence, error: DaemonError) -> Outcome:
        """Its end, unless a restored state may be why: then it begins again without one."""
        if self.prefixes.again(sequence):
            return Outcome(sequence)
        return Outcome(sequence, error=error)


def _sample(sequence: Sequence, row: NDArray[np.float32] | None) -> Outcome:
    try:
        if sequence.generated_tokens < len(sequence.told):
            choice = Choice(sequence.told[sequence.generated_tokens])
        else:
            choice = choose(_row(row), sequence.sampling, len(sequence.ids))
    except Exception as error:  # noqa: BLE001 (it ends this sequence and no other)
        return Outcome(sequence, error=_failure(error))
    now_s = time.monotonic()
    if sequence.first_token_s is None:
        sequence.first_token_s = now_s
    sequence.last_token_s = now_s
    sequence.ids.append(choice.id)
    sequence.state = State.DECODE
    if choice.id in sequence.stop_ids:
        sequence.finish = Finish.STOP
    elif sequence.generated_tokens >= sequence.max_tokens:
        sequence.finish = Finish.LENGTH
    return Outcome(sequence, choice)


def _row(row: NDArray[np.float32] | None) -> NDArray[np.float32]:
    if row is None:
        raise EngineError("NO_LOGITS", "the model gave no logits where they were asked for")
    return row


def _failure(error: Exception) -> DaemonError:
    if isinstance(error, DaemonError):
        return error
    failure = EngineError(
        "STEP_FAILED",
        f"the model failed in a step: {type(error).__name__}: {error}",
        "send the request again; the log of the daemon has the details",
    )
    failure.__cause__ = error
    return failure
