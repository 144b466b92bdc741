"""The one thread that touches the model: `step = schedule -> run -> emit`.

The event loop owns RPC, this thread owns the model (loading included), and they meet here at two
queues: the waiting room on the way in, one `call_soon_threadsafe` a step on the way out. A request
to stop is a flag on the sequence, acted on before the next step.

A reader that is slow stalls nobody and keeps no session: its sequence runs on to its end, and what
it has not read waits as ids, at most `max_tokens` of them.
"""

import asyncio
import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple, TypeVar

import structlog

from ds4_daemon.engine.prefix import Prefixes
from ds4_daemon.engine.sampler import Choice
from ds4_daemon.engine.step import Model, Outcome, Stepper
from ds4_daemon.engine.totals import Totals
from ds4_daemon.errors import DaemonError, EngineError, RequestError, UnavailableError
from ds4_daemon.sched.policy import Limits, StepPlan, plan
from ds4_daemon.sched.queue import WaitingRoom
from ds4_daemon.sched.sequence import Finish, Sequence, State

_Answer = TypeVar("_Answer")

_log = structlog.get_logger()


class Advanced(NamedTuple):
    """A chunk of the prompt was computed; the sequence's counters say how far it is."""


class Generated(NamedTuple):
    """A token was chosen."""

    choice: Choice


class Ended(NamedTuple):
    """Nothing follows. `error` with ERROR only."""

    finish: Finish
    error: DaemonError | None = None


Event = Advanced | Generated | Ended
Events = asyncio.Queue[Event]


class Drained(NamedTuple):
    """Requests that ended by themselves, and those that were told to."""

    finished: int
    drained: int


class Engine:
    """Made, started and used on the event loop; `load` and all after it run on its own thread."""

    def __init__(
        self,
        load: Callable[[], Model],
        limits: Limits,
        max_waiting: int,
        reuse: Callable[[Any, "Engine"], Prefixes] | None = None,
    ) -> None:
        """`reuse` makes what reuses prefixes, from the loaded model; none: nothing is reused."""
        self.limits = limits
        self.room = WaitingRoom(max_waiting)
        self.totals = Totals()
        self.draining = False
        self.failure: DaemonError | None = None
        self.model: Model | None = None  # None while it loads
        self.load_s = 0.0
        self.prefixes: Prefixes | None = None  # None while the model loads
        self._load = load
        self._reuse = reuse
        self._running: list[Sequence] = []
        self._open: dict[str, tuple[Sequence, Events]] = {}
        self._drained = 0
        self._asked: deque[Callable[[], None]] = deque()
        self._wake = threading.Event()
        self._closing = False
        self._loop = asyncio.get_running_loop()
        self._started: asyncio.Future[Model] = self._loop.create_future()
        self._idle = asyncio.Event()
        self._idle.set()
        self.died = asyncio.Event()
        # A daemon thread: a step that never ends must not keep the process from leaving.
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)

    # The event loop's side.

    async def start(self, warm_up_id: int) -> None:
        """Load the model and decode one token. Raises what loading raised."""
        began_s = time.monotonic()
        self._warm_up_id = warm_up_id
        self._thread.start()
        # Shielded: a caller that gives up must not cancel the future that the thread sets.
        self.model = await asyncio.shield(self._started)
        self.load_s = time.monotonic() - began_s

    def submit(self, sequence: Sequence) -> Events:
        """Queue it; its events come through what is returned, `Ended` last.

        Raises UnavailableError, RequestError or OverloadedError when it is not taken.
        """
        try:
            self.check_open()
            if sequence.request_id in self._open:
                raise RequestError(
                    "REQUEST_ID_IN_USE",
                    f"a request {sequence.request_id!r} runs or waits already",
                    "give each request its own id, or leave it empty",
                )
            self.room.put(sequence)
        except DaemonError:
            self.totals.refused += 1
            raise
        events: Events = asyncio.Queue()
        self._open[sequence.request_id] = (sequence, events)
        self._idle.clear()
        self.totals.requests += 1
        self.totals.prompt_tokens += sequence.prompt_tokens
        self._wake.set()
        return events

    def stop(self, sequence: Sequence, finish: Finish) -> None:
        """Have it ended for this reason before the next step; the first reason given counts."""
        if sequence.stop_requested is None:
            sequence.stop_requested = finish
            self._wake.set()

    def ask(self, call: Callable[[], _Answer]) -> "asyncio.Future[_Answer]":
        """What `call` returns between two steps, on the thread that owns the sessions."""
        answer: asyncio.Future[_Answer] = self._loop.create_future()

        def deliver(take: Callable[[], None]) -> None:
            if not answer.done():  # else nobody waits any more
                take()

        def run() -> None:
            try:
                take = partial(answer.set_result, call())
            except Exception as error:  # noqa: BLE001 (raised again where it is awaited)
                take = partial(answer.set_exception, error)
            self._post(deliver, take)

        self._asked.append(run)
        self._wake.set()
        return answer

    def wake(self) -> None:
        """Have the thread look again; from any thread."""
        self._wake.set()

    def cancel(self, request_id: str) -> bool:
        """Stop a request by its id; False when no such request runs or waits."""
        found = self._open.get(request_id)
        if found is None:
            return False
        self.stop(found[0], Finish.CANCELLED)
        return True

    @property
    def sequences(self) -> list[Sequence]:
        """All that run or wait, oldest first."""
        return [sequence for sequence, _ in self._open.values()]

    @property
    def state(self) -> str:
        """loading, serving, draining or failed."""
        if self.failure is not None:
            return "failed"
        if self.draining:
            return "draining"
        return "loading" if self.model is None else "serving"

    async def drain(self, limit_s: float) -> Drained:
        """Take nothing new, let what runs finish, and end what still runs after `limit_s`.

        Those are told at once, however long the present step takes.
        """
        self.draining = True
        before, drained_before = len(self._open), self._drained
        try:
            await asyncio.wait_for(self._idle.wait(), limit_s)
        except TimeoutError:
            late = self.sequences
            for sequence in late:
                self.stop(sequence, Finish.DRAINED)
            self._deliver([(sequence, Ended(Finish.DRAINED)) for sequence in late])
        drained = self._drained - drained_before
        return Drained(before - drained, drained)

    async def close(self, patience_s: float) -> None:
        """End the thread; wait for its last step no longer than `patience_s`."""
        self._closing = True
        self._wake.set()
        if self._thread.is_alive():
            await asyncio.to_thread(self._thread.join, patience_s)

    def check_open(self) -> None:
        """Raise UnavailableError while no request is taken."""
        hint = "see `ds4ctl status`"
        match self.state:
            case "draining":
                raise UnavailableError("DRAINING", "the daemon is stopping", "start it again")
            case "loading":
                raise UnavailableError("LOADING", "the daemon still loads its model", hint)
            case "failed":
                raise UnavailableError("ENGINE_FAILED", f"the engine failed: {self.failure}", hint)

    def _deliver(self, batch: list[tuple[Sequence, Event]]) -> None:
        for sequence, event in batch:
            found = self._open.get(sequence.request_id)
            if found is None or found[0] is not sequence:
                continue  # it was told its end already
            found[1].put_nowait(event)
            if isinstance(event, Ended):
                del self._open[sequence.request_id]
                self._count(event.finish)
        if not self._open:
            self._idle.set()

    def _count(self, finish: Finish) -> None:
        match finish:
            case Finish.ERROR:
                self.totals.failed += 1
            case Finish.CANCELLED | Finish.DEADLINE | Finish.DRAINED:
                self.totals.cancelled += 1
                self._drained += finish is Finish.DRAINED
            case _:
                self.totals.finished += 1

    def _fail(self, error: DaemonError) -> None:
        self.failure = error
        ended = Ended(Finish.ERROR, error)
        self._deliver([(sequence, ended) for sequence in self.sequences])
        self.died.set()

    # The thread's side.

    def _work(self) -> None:
        try:
            model = self._load()
            prefixes = self._reuse(model, self) if self._reuse else Prefixes(model.new_state)
            self._stepper = Stepper(model, prefixes)
            self._stepper.warm_up(self._warm_up_id)
            self.prefixes = prefixes
        except BaseException as error:  # noqa: BLE001 (handed over whole to the one who waits)
            self._post(self._started.set_exception, error)
            return
        self._post(self._started.set_result, model)
        try:
            while not self._closing:
                self._wake.clear()  # before looking, so that nothing put meanwhile is missed
                if not self._step():
                    self._wake.wait()
        except BaseException as error:  # noqa: BLE001 (whatever it is, those who wait are told)
            _log.exception("engine died")
            failure = EngineError("ENGINE_DIED", f"the engine's thread died: {error!r}")
            self._post(self._fail, failure)

    def _step(self) -> bool:
        """One step; False when there was nothing to run."""
        while self._asked:
            self._asked.popleft()()
        self._stepper.poll()
        events = self._schedule()
        step = plan(self._running, self.limits)
        if step.slices:
            events += self._conclude(self._run(step))
        if events:
            self._post(self._deliver, events)
        return bool(step.slices) or self._stepper.prefixes.idle_step()

    def _schedule(self) -> list[tuple[Sequence, Event]]:
        """End what need not go on, and start what there is room for."""
        now_s = time.monotonic()

        def unwanted(sequence: Sequence) -> bool:
            if sequence.deadline_s is not None and now_s >= sequence.deadline_s:
                self.stop(sequence, Finish.DEADLINE)
            return sequence.stop_requested is not None

        ended = self.room.remove_if(unwanted) + [s for s in self._running if unwanted(s)]
        events: list[tuple[Sequence, Event]] = []
        for sequence in ended:
            sequence.finish = sequence.stop_requested
            events.append((sequence, self._end(sequence)))
        self._running = [s for s in self._running if s.state is not State.DONE]
        for sequence in self.room.take(self.limits.max_running - len(self._running)):
            self._stepper.open(sequence)
            self._running.append(sequence)
        return events

    def _run(self, step: StepPlan) -> list[Outcome]:
        totals = self.totals
        prefill = sum(part.tokens for part in step.slices if part.sequence.state is State.PREFILL)
        decode = sum(part.sequence.state is State.DECODE for part in step.slices)
        began_s = time.monotonic()
        outcomes = self._stepper.run(step, totals.steps)
        totals.last_step_s = time.monotonic()
        took_s = totals.last_step_s - began_s
        totals.steps += 1
        totals.busy_s += took_s
        totals.prefilled_tokens += prefill
        totals.generated_tokens += sum(o.choice is not None for o in outcomes)
        if prefill:
            totals.prefill.add(prefill, took_s)
        if decode:
            totals.decode.add(decode, took_s)
        failed = all(o.error is not None for o in outcomes)
        totals.failed_steps_in_a_row = totals.failed_steps_in_a_row + 1 if failed else 0
        return outcomes

    def _conclude(self, outcomes: Iterable[Outcome]) -> list[tuple[Sequence, Event]]:
        events: list[tuple[Sequence, Event]] = []
        for sequence, choice, error in outcomes:
            if error is not None:
                sequence.finish = Finish.ERROR
                _log.error("sequence failed", request_id=sequence.request_id, exc_info=error)
            elif choice is not None:
                events.append((sequence, Generated(choice)))
            else:
                events.append((sequence, Advanced()))
            if sequence.finish is not None:
                events.append((sequence, self._end(sequence, error)))
        self._running = [s for s in self._running if s.state is not State.DONE]
        return events

    def _end(self, sequence: Sequence, error: DaemonError | None = None) -> Ended:
        self._stepper.close(sequence)
        self.totals.cached_live_tokens += sequence.cached_live_tokens
        self.totals.cached_restored_tokens += sequence.cached_restored_tokens
        return Ended(sequence.finish or Finish.ERROR, error)

    def _post(self, call: Callable[[Any], object], value: object) -> None:
        # The loop is closed only once nobody waits for events any more.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(call, value)
