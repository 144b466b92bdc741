"""Runs the parts of a step on the model: sequences in, chosen tokens out.

The session (the model's live state) of every running sequence is `prefix`'s, which is told of each
chunk and token. Holds the passes of chunks that are under way: any number of them may be, and each
goes on where it was, one of them on a second thread where the plan says so. Knows neither clients
nor queues nor why the plan is what it is. Used by `engine.loop` alone, on the engine's thread.
"""

import time
from collections.abc import Callable
from collections.abc import Sequence as Items
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from ds4_daemon.engine.chunk import Chunk, Pass, SecondThread, Turn
from ds4_daemon.engine.prefix import Prefixes
from ds4_daemon.engine.sampler import Choice, choose
from ds4_daemon.errors import DaemonError, EngineError, OverloadedError
from ds4_daemon.model.network import Segment, Want
from ds4_daemon.model.state import SessionState
from ds4_daemon.sched.policy import Slice
from ds4_daemon.sched.rates import Rates
from ds4_daemon.sched.sampling import Sampling
from ds4_daemon.sched.sequence import Finish, Sequence, State

# A block and a little more: every kind of compressed row is made and read.
PROBE_TOKENS = 130


class Model(Protocol):
    """What the engine needs of `model.network.Network`."""

    device: str
    dtype: str
    rounding: bool
    weights_bytes: int

    def new_state(self) -> SessionState: ...

    def begin(self, batch: Items[Segment]) -> Pass: ...

    def forward(self, batch: Items[Segment]) -> list[NDArray[np.float32] | None]: ...


class Outcome(NamedTuple):
    """What a step did for one sequence: it chose a token, or went on with a chunk, or failed."""

    sequence: Sequence
    choice: Choice | None = None
    error: DaemonError | None = None


class Stepper:
    """The model and the sessions on it."""

    def __init__(self, model: Model, prefixes: Prefixes, rates: Rates) -> None:
        self._model = model
        self.prefixes = prefixes
        self.rates = rates
        self._chunks: dict[Sequence, Chunk] = {}
        self._units_s: list[float] = []  # of the last chunk that was done
        self._warm_up_id = 0
        self._second = SecondThread()
        self._beside: Turn | None = None  # what runs on it

    def warm_up(self, token_id: int) -> None:
        """Decode one token, so that what compiles does it now and a broken model fails now."""
        self._warm_up_id = token_id
        segment = Segment(self._model.new_state(), np.array([token_id], np.int32), Want.LAST)
        choose(_row(self._model.forward([segment])[0]), Sampling(), 1)

    def is_sound(self) -> bool:
        """Whether the model still computes a prompt, and a token after it."""
        prompt = np.full(PROBE_TOKENS, self._warm_up_id, np.int32)
        try:
            run = self._model.begin([Segment(self._model.new_state(), prompt, Want.LAST)])
            run.advance(run.units)
            choose(_row(run.results[0]), Sampling(), len(prompt))
            self.warm_up(self._warm_up_id)
        except Exception:  # noqa: BLE001 (the answer is no, whatever it raises)
            return False
        return True

    def open(self, sequence: Sequence) -> None:
        """Give it a session, at once or through `poll`."""
        self.prefixes.sync(sequence)

    def poll(self) -> None:
        """Let sequences go on whose prefix was restored meanwhile."""
        self.prefixes.poll()

    def close(self, sequence: Sequence) -> None:
        """Give its session back; of what failed nothing is kept."""
        dropped = self._chunks.pop(sequence, None) is not None
        failed = sequence.finish is Finish.ERROR
        self.prefixes.close(sequence, failed=failed, midway=dropped)
        sequence.state = State.DONE
        sequence.state_bytes = 0
        sequence.chunk_share = 0.0

    def decode(self, sequences: Items[Sequence]) -> list[Outcome]:
        """One token more for each. When the model raises, all their states are in doubt."""
        began_s = time.monotonic()
        try:
            rows = self._model.forward([self._segment(s, 1, last=True) for s in sequences])
        except Exception as error:  # noqa: BLE001 (whatever a model raises ends its sequences only)
            return [self._failed(sequence, _failure(error)) for sequence in sequences]
        if self._beside is None:  # each takes from the other
            self.rates.decoded(len(sequences), time.monotonic() - began_s)
        return [self._took(s, 1, row, last=True) for s, row in zip(sequences, rows, strict=True)]

    def prefill(self, part: Slice, interrupted: Callable[[], bool]) -> Outcome:
        """Go on with a chunk, or begin it, unit by unit until the slice's time is over.

        Or until something else is to do, which may be that a slice that was begun beside is over.
        """
        turn, beside = self._turn(part), self._beside
        turn.run(self._units_s, lambda: interrupted() or (beside is not None and beside.ended))
        return self._conclude(turn)

    def start(self, part: Slice) -> None:
        """Go on with a chunk on the second thread; until `join` no session is to be touched, but
        for those of `decode` and `prefill`, which it does not share with them."""
        turn = self._beside = self._turn(part)
        self._second.start(lambda: turn.run(self._units_s))

    def join(self) -> tuple[Outcome, float]:
        """What came of it once its present unit is done, and the seconds that it took."""
        assert self._beside is not None
        turn, self._beside = self._beside, None
        turn.stop = True
        self._second.join()
        return self._conclude(turn), turn.took_s

    def shut(self) -> None:
        """Nothing will be run any more."""
        if self._beside is not None:  # where the engine died beside it
            self._beside.stop = True
        self._second.close()

    def _turn(self, part: Slice) -> Turn:
        """The slice, of a pass that is under way or begins with it."""
        sequence = part.sequence
        chunk = self._chunks.get(sequence)
        try:
            if chunk is None:
                self.prefixes.begins(sequence)
                run = self._model.begin([self._segment(sequence, part.tokens, last=part.last)])
                chunk = self._chunks[sequence] = Chunk(run)
        except Exception as error:  # noqa: BLE001 (whatever a model raises ends this sequence only)
            return Turn(part, error=error)
        return Turn(part, chunk)

    def _conclude(self, turn: Turn) -> Outcome:
        """What a slice came to."""
        part, chunk = turn.part, turn.chunk
        sequence = part.sequence
        if turn.error is not None or chunk is None:
            self._chunks.pop(sequence, None)
            return self._failed(sequence, _failure(turn.error or RuntimeError("no pass")))
        sequence.chunk_tokens = part.tokens
        sequence.chunk_share = chunk.run.done_units / chunk.run.units
        if not chunk.done:
            return Outcome(sequence)
        del self._chunks[sequence]
        begin = sequence.computed_tokens
        self.rates.prefilled(begin, begin + part.tokens, sum(chunk.units_s))
        self._units_s = chunk.units_s
        return self._took(sequence, part.tokens, chunk.run.results[0], last=part.last)

    def _segment(self, sequence: Sequence, tokens: int, *, last: bool) -> Segment:
        begin = sequence.computed_tokens
        ids = np.frombuffer(sequence.ids[begin : begin + tokens], dtype=np.int32)
        return Segment(self.prefixes.state(sequence), ids, Want.LAST if last else Want.NONE)

    def _took(
        self, sequence: Sequence, tokens: int, row: NDArray[np.float32] | None, *, last: bool
    ) -> Outcome:
        """Its state grew by so many tokens."""
        sequence.computed_tokens += tokens
        sequence.chunk_share = 0.0
        sequence.state_bytes = self.prefixes.state(sequence).nbytes
        outcome = _sample(sequence, row) if last else Outcome(sequence)
        if outcome.error is not None:
            return self._failed(sequence, outcome.error)
        self.prefixes.advanced(sequence)
        return outcome

    def _failed(self, sequence: Sequence, error: DaemonError) -> Outcome:
        """Its end, unless a restored state may be why: then it begins again without one."""
        sequence.chunk_share = 0.0
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
    if isinstance(error, MemoryError):
        return OverloadedError(
            "OUT_OF_MEMORY",
            "there was no memory left to go on with this request",
            "send it again later, or lower sessions_bytes in the daemon's settings",
        )
    failure = EngineError(
        "STEP_FAILED",
        f"the model failed in a step: {type(error).__name__}: {error}",
        "send the request again; the log of the daemon has the details",
    )
    failure.__cause__ = error
    return failure
