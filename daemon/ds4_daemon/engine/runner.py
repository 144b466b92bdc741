"""One step of the engine: schedule -> run -> emit, and the books of what it did.

Owns the sequences that hold a session, and on their account the ledger, the totals, the measured
rates and the pulse that the watchdog reads. Knows no event loop: what it has to tell goes out
through two functions. Made and called by `engine.loop`, on its thread.
"""

import time
from collections.abc import Callable, Iterable
from collections.abc import Sequence as Items

import structlog

from ds4_daemon.engine.admission import Admission
from ds4_daemon.engine.events import Advanced, Ended, Event, Generated
from ds4_daemon.engine.step import Outcome, Stepper
from ds4_daemon.engine.totals import Totals
from ds4_daemon.engine.watchdog import Pulse
from ds4_daemon.errors import DaemonError, EngineError, UnavailableError
from ds4_daemon.sched.ledger import DECODED_TOKEN_WORK
from ds4_daemon.sched.policy import Limits, Slice, StepPlan, is_aged, is_short, plan
from ds4_daemon.sched.sequence import Finish, Sequence, State

# A model that fails on one request may be right to; one that fails on three in a row is broken,
# unless it shows that it is not.
MAX_FAILED_STEPS = 3

_log = structlog.get_logger()


class Runner:
    """`emit` tells of sequences, `trip` that nothing can be run any more; neither waits.

    `interrupted`: whether something came that is to be looked at before more of a prompt is run.
    """

    def __init__(
        self,
        stepper: Stepper,
        admission: Admission,
        limits: Limits,
        totals: Totals,
        pulse: Pulse,
        emit: Callable[[list[tuple[Sequence, Event]]], None],
        trip: Callable[[DaemonError], None],
        interrupted: Callable[[], bool],
    ) -> None:
        self.running: list[Sequence] = []
        self._stepper = stepper
        self._admission = admission
        self._limits = limits
        self._totals = totals
        self._pulse = pulse
        self._emit = emit
        self._trip = trip
        self._interrupted = interrupted
        self._tripped: DaemonError | None = None
        self._prefill_work_s = 0.0  # of chunks that are not done

    def step(self) -> bool:
        """One step; False when there was nothing to run."""
        if self._tripped is not None:
            return self._end_all(self._tripped)
        self._stepper.poll()
        self._emit(self._schedule())
        decoding = sum(s.state is State.DECODE for s in self.running)
        decode_s = self._stepper.rates.decode_s(min(decoding, self._limits.max_running))
        step = plan(self.running, self._limits, self._admission.ledger, time.monotonic(), decode_s)
        self._run(step, decode_s)
        worked = step != StepPlan()
        self._totals.steps += worked
        idle_work = not worked and self._stepper.prefixes.idle_step()
        if worked:
            self._pulse.progress_s = time.monotonic()
        return worked or idle_work

    def _run(self, step: StepPlan, decode_s: float | None) -> None:
        outcomes: list[Outcome] = []
        for part in (step.prefill, step.beside):
            if part is not None:
                self._count_turn(part)
        if step.beside is not None:
            self._stepper.start(step.beside)
        if step.decode:
            self._pulse.begin(decode_s)
            outcomes = self._decode(step.decode)
            if step.prefill is not None:  # told before the slice is run
                self._emit(self._conclude(outcomes))
                outcomes = []
        if step.prefill is not None:
            self._pulse.begin(step.prefill.budget_s)
            outcomes.append(self._prefill(step.prefill))
        if step.beside is not None:
            outcomes.append(self._join(step.beside))
        self._emit(self._conclude(outcomes))

    def _schedule(self) -> list[tuple[Sequence, Event]]:
        """End what need not go on, and start what there is room for."""
        now_s = time.monotonic()

        def unwanted(sequence: Sequence) -> bool:
            if sequence.deadline_s is not None and now_s >= sequence.deadline_s:
                sequence.stop(Finish.DEADLINE)
            return sequence.stop_requested is not None

        ended = self._admission.room.remove_if(unwanted) + [s for s in self.running if unwanted(s)]
        events: list[tuple[Sequence, Event]] = []
        for sequence in ended:
            sequence.finish = sequence.stop_requested
            events.append((sequence, self._end(sequence)))
        self.running[:] = [s for s in self.running if s.state is not State.DONE]
        prefixes = self._stepper.prefixes
        outgrown = self._admission.relieve(self.running, prefixes, now_s)
        if outgrown is not None:
            events.append((outgrown[0], self._end_failed(*outgrown)))
        for sequence in self._admission.take(self.running, prefixes, now_s):
            try:
                self._stepper.open(sequence)
                self.running.append(sequence)
            except DaemonError as error:
                events.append((sequence, self._end_failed(sequence, error)))
        return events

    def _decode(self, sequences: Items[Sequence]) -> list[Outcome]:
        began_s = time.monotonic()
        outcomes = self._stepper.decode(sequences)
        took_s = self._count_work(began_s, sequences)
        self._totals.decode.add(len(sequences), took_s)
        for sequence in sequences:
            self._admission.ledger.serve(sequence.client.name, DECODED_TOKEN_WORK)
        self._count_failures(outcomes)
        return outcomes

    def _prefill(self, part: Slice) -> Outcome:
        began_s, before = time.monotonic(), part.sequence.computed_tokens
        outcome = self._stepper.prefill(part, self._interrupted)
        took_s = self._count_work(began_s, [part.sequence])
        self._count_prefilled(outcome, before, took_s)
        return outcome

    def _join(self, part: Slice) -> Outcome:
        began_s, before = time.monotonic(), part.sequence.computed_tokens
        outcome, took_s = self._stepper.join()
        self._count_work(began_s, [part.sequence])
        self._count_prefilled(outcome, before, took_s)
        return outcome

    def _count_turn(self, part: Slice) -> None:
        aged = is_aged(part.sequence, time.monotonic())
        self._admission.ledger.turn(short=is_short(part.sequence), aged=aged)

    def _count_prefilled(self, outcome: Outcome, before: int, took_s: float) -> None:
        """`before`: how far the sequence was."""
        sequence, totals = outcome.sequence, self._totals
        self._prefill_work_s += took_s
        tokens = sequence.computed_tokens - before
        if tokens > 0:
            totals.prefilled_tokens += tokens
            totals.prefill.add(tokens, self._prefill_work_s)
            self._prefill_work_s = 0.0
            self._admission.ledger.serve(sequence.client.name, tokens)
        if tokens > 0 or outcome.error is not None:  # a slice proves nothing until its chunk ends
            self._count_failures([outcome])

    def _count_work(self, began_s: float, sequences: Items[Sequence]) -> float:
        totals = self._totals
        totals.last_step_s = time.monotonic()
        took_s = totals.last_step_s - began_s
        totals.busy_s += took_s
        for sequence in sequences:
            sequence.last_step, sequence.served_s = totals.steps, totals.last_step_s
        return took_s

    def _count_failures(self, outcomes: Items[Outcome]) -> None:
        """An engine that fails again and again has to say so, and not to go on trying."""
        totals = self._totals
        totals.generated_tokens += sum(o.choice is not None for o in outcomes)
        errors = [o.error for o in outcomes if isinstance(o.error, EngineError)]
        if len(errors) < len(outcomes):
            totals.failed_steps_in_a_row = 0
            return
        totals.failed_steps_in_a_row += 1
        if totals.failed_steps_in_a_row < MAX_FAILED_STEPS or self._tripped is not None:
            return
        if self._stepper.is_sound():  # bad requests fail alone, however many are sent
            _log.warning("requests failed again", failed_steps=totals.failed_steps_in_a_row)
        else:
            _log.error("engine tripped", failed_steps=totals.failed_steps_in_a_row)
            self._tripped = UnavailableError(
                "ENGINE_TRIPPED",
                f"{totals.failed_steps_in_a_row} steps failed in a row; the last one said: "
                f"{errors[-1]}",
                "restart the daemon; its log has the details",
            )
            self._trip(self._tripped)

    def _conclude(self, outcomes: Iterable[Outcome]) -> list[tuple[Sequence, Event]]:
        events: list[tuple[Sequence, Event]] = []
        for sequence, choice, error in outcomes:
            if error is not None:
                sequence.finish = Finish.ERROR
                _log.error("sequence failed", request_id=sequence.request_id, exc_info=error)
            elif choice is not None:
                events.append((sequence, Generated(choice)))
            elif not sequence.chunk_share:
                events.append((sequence, Advanced()))
            if sequence.finish is not None:
                events.append((sequence, self._end(sequence, error)))
        self.running[:] = [s for s in self.running if s.state is not State.DONE]
        return events

    def _end_all(self, error: DaemonError) -> bool:
        """Nothing more is run."""
        open_ = self._admission.room.remove_if(lambda _: True) + self.running
        self._emit([(sequence, self._end_failed(sequence, error)) for sequence in open_])
        return False

    def _end_failed(self, sequence: Sequence, error: DaemonError) -> Ended:
        sequence.finish = Finish.ERROR
        ended = self._end(sequence, error)
        self.running[:] = [s for s in self.running if s is not sequence]
        return ended

    def _end(self, sequence: Sequence, error: DaemonError | None = None) -> Ended:
        self._stepper.close(sequence)
        self._totals.cached_live_tokens += sequence.cached_live_tokens
        self._totals.cached_restored_tokens += sequence.cached_restored_tokens
        return Ended(sequence.finish or Finish.ERROR, error)
