"""Packed batches for the trainer, made by worker processes.

Rows are filled with whole samples; what is left of a row gets a piece of a book, so nothing is
padded and no chat is cut from its own beginning. Each worker makes whole batches from a seed of its
own and batches are taken from the workers in turn, so the stream depends on the arguments only.

    python models/nano/data/stream.py --corpus CORPUS [--phase A] [--sequence 1024] [--workers 1]

measures tokens a second, and prints a few samples of each part with `--show N`.
"""

import argparse
import multiprocessing
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Generator, Iterator
from multiprocessing.queues import Queue
from pathlib import Path
from queue import Empty

import numpy as np
import numpy.typing as npt

# As a script, this file finds its neighbours whatever the working folder.
sys.path.insert(0, str(Path(__file__).parents[3]))

from ds4_daemon.text.tokenizer import Tokenizer

from models.nano.data.encode import Sample
from models.nano.data.mixture import CUTTABLE, Mixture, Part, Phase

Batch = tuple[npt.NDArray[np.uint16], npt.NDArray[np.uint8]]

TOKENIZER = Path(__file__).parents[1] / "tokenizer.json"
_POOLED_SAMPLES = 24  # to choose from, so that rows are filled well
_QUEUED_BATCHES = 4
_OWED_BOOK_TOKENS = 4096
_POLL_S = 1.0  # how soon a dead worker is noticed


class Packer:
    """One endless stream of rows."""

    def __init__(self, mixture: Mixture, phase: Phase, row_tokens: int, rng: random.Random) -> None:
        self._mixture = mixture
        self._shares = phase.value
        self._row_tokens = row_tokens
        self._rng = rng
        self.waiting: list[Sample] = []  # drawn, not yet in a row
        self._book = Sample([], [])
        self.tokens: Counter[Part] = Counter()

    def row(self) -> Sample:
        """The next row: exactly `row_tokens` ids with their weights."""
        ids: list[int] = []
        weights: list[int] = []
        while room := self._row_tokens - len(ids):
            piece = self._owed_book(room) or self._fitting(room) or self._piece_of_book(room)
            ids += piece.ids
            weights += piece.weights
        return Sample(ids, weights)

    def _fitting(self, room: int) -> Sample | None:
        """The sample that has waited longest among those that fit."""
        while len(self.waiting) < _POOLED_SAMPLES:
            part = self._due()
            if part in CUTTABLE:
                self._book = _joined(self._book, self._drawn(part))
                continue
            self.waiting.append(self._drawn(part))
        for place, sample in enumerate(self.waiting):
            if len(sample.ids) <= room:
                return self.waiting.pop(place)
        return None

    def _owed_book(self, room: int) -> Sample | None:
        """A piece of the book where gaps took less of it than its share."""
        if len(self._book.ids) <= _OWED_BOOK_TOKENS:
            return None
        return self._piece_of_book(min(room, len(self._book.ids)))

    def _piece_of_book(self, room: int) -> Sample:
        while len(self._book.ids) < room:
            self._book = _joined(self._book, self._drawn(Part.BOOKS))
        piece, self._book = _split(self._book, room)
        return piece

    def _due(self) -> Part:
        """The part that lags most behind its share."""
        total = sum(self.tokens.values())
        return max(Part, key=lambda p: (self._shares[p] * total / 100 - self.tokens[p], p))

    def _drawn(self, part: Part) -> Sample:
        sample = self._mixture.sample(part, self._rng, self._row_tokens)
        self.tokens[part] += len(sample.ids)
        return sample


def _joined(left: Sample, right: Sample) -> Sample:
    return Sample(left.ids + right.ids, left.weights + right.weights)


def _split(sample: Sample, at: int) -> tuple[Sample, Sample]:
    ids, weights = sample
    return Sample(ids[:at], weights[:at]), Sample(ids[at:], weights[at:])


def batches_of_one(
    corpus: Path, phase: Phase, sequence_tokens: int, batch_sequences: int, seed: str
) -> Iterator[Batch]:
    """The endless stream of one worker."""
    mixture = Mixture(Tokenizer.load(TOKENIZER), corpus)
    packer = Packer(mixture, phase, sequence_tokens + 1, random.Random(seed))
    while True:
        rows = [packer.row() for _ in range(batch_sequences)]
        yield (
            np.array([row.ids for row in rows], np.uint16),
            np.array([row.weights for row in rows], np.uint8),
        )


def batches(
    corpus: Path,
    phase: Phase,
    sequence_tokens: int,
    batch_sequences: int,
    seed: int,
    workers: int,
) -> Generator[Batch, None, None]:
    """Endless (ids uint16, weights uint8), each [batch_sequences, sequence_tokens + 1]:
    the weight at a place is that of predicting the id there. Close it to end the workers.

    The stream is the same for the same arguments, `workers` among them. Workers take seconds to
    start; a caller that changes the phase can ask the next stream's first batch ahead.
    """
    context = multiprocessing.get_context("spawn")
    queues: list[Queue[Batch]] = [context.Queue(_QUEUED_BATCHES) for _ in range(workers)]
    started = []
    for place, queue in enumerate(queues):
        own = f"{seed}/{phase.name}/{sequence_tokens}/{place}"
        arguments = (corpus, phase.name, sequence_tokens, batch_sequences, own, queue)
        started.append(context.Process(target=_work, args=arguments, daemon=True))
        started[-1].start()
    try:
        while True:
            for queue, process in zip(queues, started, strict=True):
                yield _next(queue, process)
    finally:
        for process in started:
            process.terminate()
            process.join()


def _next(queue: "Queue[Batch]", process: multiprocessing.process.BaseProcess) -> Batch:
    while True:
        try:
            return queue.get(timeout=_POLL_S)
        except Empty:
            if not process.is_alive():
                raise RuntimeError(
                    f"a data worker ended with exit code {process.exitcode}"
                ) from None


def _work(
    corpus: Path,
    phase: str,
    sequence_tokens: int,
    batch_sequences: int,
    seed: str,
    queue: "Queue[Batch]",
) -> None:
    """The body of a worker process."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # a worker is one of many
    for batch in batches_of_one(corpus, Phase[phase], sequence_tokens, batch_sequences, seed):
        queue.put(batch)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--phase", choices=[phase.name for phase in Phase], default="A")
    parser.add_argument("--sequence", type=int, default=1024)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--batches", type=int, default=20)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--show", type=int, default=0, help="print so many samples of each part")
    args = parser.parse_args()
    if args.show:
        mixture = Mixture(Tokenizer.load(TOKENIZER), args.corpus)
        rng = random.Random(args.seed)
        for part in Part:
            for _ in range(args.show):
                sample = mixture.sample(part, rng, args.sequence)
                print(f"--- {part}, {len(sample.ids)} tokens")
                print(mixture.encoder.tokenizer.decode(sample.ids))
        return
    stream = batches(
        args.corpus, Phase[args.phase], args.sequence, args.batch, args.seed, args.workers
    )
    next(stream)
    start_s = time.perf_counter()
    for _ in range(args.batches):
        next(stream)
    elapsed_s = time.perf_counter() - start_s
    tokens = args.batches * args.batch * args.sequence
    print(f"{tokens / elapsed_s:,.0f} tokens/s with {args.workers} workers")
    stream.close()


if __name__ == "__main__":
    main()
