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
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeVar

import structlog

from ds4_daemon.engine.admission import Admission
from ds4_daemon.engine.events import Advanced, Ended, Event, Events, Generated
from ds4_daemon.engine.memory import Memory
from ds4_daemon.engine.prefix import Prefixes
from ds4_daemon.engine.runner import Runner
from ds4_daemon.engine.step import Model, Stepper
from ds4_daemon.engine.totals import Totals
from ds4_daemon.engine.watchdog import Pulse, finding
from ds4_daemon.errors import (
    DaemonError,
    EngineError,
    OverloadedError,
    RequestError,
    UnavailableError,
)
from ds4_daemon.sched.estimate import first_token_s
from ds4_daemon.sched.ledger import Ledger
from ds4_daemon.sched.policy import Limits
from ds4_daemon.sched.queue import WaitingRoom
from ds4_daemon.sched.rates import Rates
from ds4_daemon.sched.sequence import Finish, Sequence, State

__all__ = ["Advanced", "Drained", "Ended", "Engine", "Event", "Events", "Generated"]

_Answer = TypeVar("_Answer")

_log = structlog.get_logger()


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
        ledger: Ledger | None = None,
        memory: Memory | None = None,
    ) -> None:
        """`reuse` makes what reuses prefixes, from the loaded model; none: nothing is reused."""
        self.limits = limits
        self.room = WaitingRoom(max_waiting)
        self.memory = memory or Memory()
        self.ledger = ledger or Ledger()
        self.totals = Totals()
        self.rates = Rates()
        self.pulse = Pulse()
        self.draining = False
        self.failure: DaemonError | None = None  # for good: the thread ended, or steps fail
        self.stalled: DaemonError | None = None  # what the watchdog found
        self.model: Model | None = None  # None while it loads
        self.load_s = 0.0
        self.prefixes: Prefixes | None = None  # None while the model loads
        self._load = load
        self._reuse = reuse
        self._admission = Admission(limits, self.room, self.ledger, self.memory)
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
            self._admission.put(sequence)
        except DaemonError as error:
            self.totals.refused += 1
            wait_s = self.estimate_s(sequence) if error.reason == "QUEUE_FULL" else None
            if wait_s is None:
                raise
            message = f"{error.message}, the last for about {wait_s:.0f} s from now"
            raise OverloadedError(error.reason, message, error.hint) from error
        events: Events = asyncio.Queue()
        if not self._open:
            self.pulse.progress_s = time.monotonic()  # it had nothing to do until now
        self._open[sequence.request_id] = (sequence, events)
        self._idle.clear()
        self.totals.requests += 1
        self.totals.prompt_tokens += sequence.prompt_tokens
        self._wake.set()
        return events

    def stop(self, sequence: Sequence, finish: Finish) -> None:
        """Have it ended for this reason before the next step; the first reason given counts."""
        sequence.stop(finish)
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

    def estimate_s(self, sequence: Sequence, cached_tokens: int = 0) -> float | None:
        """Seconds to its first token, also of one that was not submitted; None while unknown."""
        before = self.room.before(sequence)
        if sequence.request_id not in self._open:
            before = self.room.waiting
        return first_token_s(
            sequence, before, self._running, self.limits, self.rates, cached_tokens
        )

    @property
    def headroom_bytes(self) -> int:
        """Memory that is left for new sequences; idle sessions would leave for them."""
        idle_bytes = self.prefixes.idle_bytes if self.prefixes is not None else 0
        return self._admission.headroom_bytes(self._running, idle_bytes)

    def look(self, limit_s: float) -> DaemonError | None:
        """What keeps the thread from going on, if it seems that something does."""
        if self.model is None or self.failure is not None:
            return None
        # Those that are restored wait for the service, which has a deadline of its own.
        wanting = sum(s.state is not State.RESTORE for s in self.sequences)
        return finding(self.pulse, wanting, time.monotonic(), limit_s)

    @property
    def problem(self) -> DaemonError | None:
        """What is wrong now, for status."""
        return self.failure or self.stalled

    @property
    def serves(self) -> bool:
        """Whether it takes requests and goes on with those it has."""
        return self.state == "serving" and self.problem is None

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
            case "failed" if self.failure is not None and self.failure.reason == "ENGINE_TRIPPED":
                raise self.failure
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
        self._trip(error)
        self.died.set()

    def _trip(self, error: DaemonError) -> None:
        self.failure = error
        ended = Ended(Finish.ERROR, error)
        self._deliver([(sequence, ended) for sequence in self.sequences])

    # The thread's side.

    def _work(self) -> None:
        try:
            model = self._load()
            prefixes = self._reuse(model, self) if self._reuse else Prefixes(model.new_state)
            stepper = Stepper(model, prefixes, self.rates)
            stepper.warm_up(self._warm_up_id)
            self.memory.settle(prefixes.layout)
            runner = Runner(
                stepper,
                self._admission,
                self.limits,
                self.totals,
                self.pulse,
                lambda events: self._post(self._deliver, events) if events else None,
                lambda error: self._post(self._trip, error),
                self._wake.is_set,
            )
            self._running = runner.running
            self.prefixes = prefixes
        except BaseException as error:  # noqa: BLE001 (handed over whole to the one who waits)
            self._post(self._started.set_exception, error)
            return
        self._post(self._started.set_result, model)
        try:
            while not self._closing:
                self._wake.clear()  # before looking, so that nothing put meanwhile is missed
                self.pulse.begin(0.0)
                while self._asked:
                    self._asked.popleft()()
                worked = runner.step()
                self.pulse.end()
                if not worked and not self._closing:  # which may have been said before the clear
                    self._wake.wait()
        except BaseException as error:  # noqa: BLE001 (whatever it is, those who wait are told)
            _log.exception("engine died")
            failure = EngineError("ENGINE_DIED", f"the engine's thread died: {error!r}")
            self._post(self._fail, failure)
        finally:
            stepper.shut()

    def _post(self, call: Callable[[Any], object], value: object) -> None:
        # The loop is closed only once nobody waits for events any more.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(call, value)
