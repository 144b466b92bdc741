"""Processes that each hold the model and measure a part of the cases, one core each.

On matrices as small as this model's, threads of one product mostly wait for each other, and wait
longest on a busy machine; processes do not. Results come in the order of the cases and do not
depend on the number of processes. Used by every measure that runs the network.
"""

import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from types import TracebackType
from typing import Self, TypeVar

from models.nano.evaluation.subject import Opened, Subject

Case = TypeVar("Case")
Outcome = TypeVar("Outcome")

# What numpy's products read when they are first loaded.
ONE_THREAD = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
_subject: Subject | None = None  # of a worker


class Crew:
    """`workers` processes over one model; with 1, this process measures by itself."""

    def __init__(self, opened: Opened, workers: int) -> None:
        """Raises ModelFileError before any process starts."""
        self.subject = opened.open()
        self._workers = workers
        self._pool: ProcessPoolExecutor | None = None
        if workers > 1:
            for name in ONE_THREAD:
                os.environ[name] = "1"
            # Not forked: threads of numpy and torch do not survive it.
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(workers, context, _open, (opened,))

    def map(
        self,
        measure: Callable[[Subject, list[Case]], list[Outcome]],
        cases: Sequence[Case],
        at_once: int = 32,
    ) -> list[Outcome]:
        """One outcome a case; `measure` is a function of a module and gets `at_once` cases.

        Raises ChildProcessError when a worker died.
        """
        share = max(1, min(at_once, -(-len(cases) // self._workers)))
        parts = [list(cases[i : i + share]) for i in range(0, len(cases), share)]
        if self._pool is None:
            return [outcome for part in parts for outcome in measure(self.subject, part)]
        jobs = [self._pool.submit(_measured, measure, part) for part in parts]
        try:
            return [outcome for job in jobs for outcome in job.result()]
        except BrokenProcessPool as error:
            raise ChildProcessError(
                "a worker died; if memory ran out, take fewer (--workers)"
            ) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)


def _open(opened: Opened) -> None:
    global _subject  # noqa: PLW0603 (a worker's one model, set as it starts)
    _subject = opened.open()


def _measured(
    measure: Callable[[Subject, list[Case]], list[Outcome]], cases: list[Case]
) -> list[Outcome]:
    assert _subject is not None
    return measure(_subject, cases)
