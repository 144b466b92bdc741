"""Batches on their way to the device: streams are begun ahead and read in a thread.

A source is `(phase name, sequence, rows, seed) -> iterator of (ids, weights)`, as `of_corpus` makes
from models/nano/data. `noise` is one for tests: a few repeating patterns, of the step's number.
"""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import Full, Queue
from typing import Any, NamedTuple

import numpy as np
import torch

Source = Callable[[str, int, int, int], Iterator[tuple[Any, Any]]]
_AHEAD = 4


class Batch(NamedTuple):
    """ids and targets [rows, sequence], and what each target's loss counts."""

    ids: torch.Tensor
    targets: torch.Tensor
    weights: torch.Tensor


def of_corpus(corpus: Path, workers: int) -> Source:
    """The mixture, made by so many processes."""
    from models.nano.data.mixture import Phase
    from models.nano.data.stream import batches

    def source(phase: str, sequence: int, rows: int, seed: int) -> Iterator[tuple[Any, Any]]:
        return batches(corpus, Phase[phase], sequence, rows, seed, workers)

    return source


def noise(vocabulary: int) -> Source:
    """Rows that count up from a random token: easily learned, and a new one for every batch."""

    def source(phase: str, sequence: int, rows: int, seed: int) -> Iterator[tuple[Any, Any]]:
        number = seed
        while True:
            first = np.random.default_rng([number, len(phase)]).integers(0, vocabulary, (rows, 1))
            ids = (first + np.arange(sequence + 1)) % vocabulary
            yield ids.astype(np.uint16), np.full(ids.shape, 255, np.uint8)
            number += 1

    return source


class Feed:
    """One stream, read ahead by a thread; iterate with `next`, and `close` it."""

    def __init__(self, stream: Iterator[tuple[Any, Any]], device: torch.device) -> None:
        self._stream = stream
        self._device = device
        self._queue: Queue[Any] = Queue(_AHEAD)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        try:
            for item in self._stream:
                while not self._closed.is_set():
                    try:
                        self._queue.put(item, timeout=0.2)
                        break
                    except Full:
                        continue
                if self._closed.is_set():
                    return
        except Exception as error:  # noqa: BLE001 - handed to the reader, who raises it
            self._queue.put(error)
        finally:
            getattr(self._stream, "close", lambda: None)()

    def next(self) -> Batch:
        item = self._queue.get()
        if isinstance(item, Exception):
            raise item
        ids, weights = item
        tokens = torch.from_numpy(ids.astype(np.int32))
        counts = torch.from_numpy(weights)
        if self._device.type == "cuda":
            tokens, counts = tokens.pin_memory(), counts.pin_memory()
        tokens = tokens.to(self._device, non_blocking=True).long()
        counts = counts.to(self._device, non_blocking=True).float() / 255
        return Batch(tokens[:, :-1], tokens[:, 1:].contiguous(), counts[:, 1:])

    def close(self) -> None:
        self._closed.set()
        self._thread.join(timeout=10)
