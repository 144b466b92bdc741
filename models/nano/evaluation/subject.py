"""The model that is measured: ds4's own network on the CPU, its tokenizer, and greedy answers.

Owns opening a file or folder, prefill, batched greedy decoding, and what an answer is once the
daemon's text layer has read it. It knows no task. Every measure runs on a `Subject`.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ds4_daemon.model.files import open_model
from ds4_daemon.model.load import load_network
from ds4_daemon.model.network import Network, Segment, Want
from ds4_daemon.model.state import SessionState
from ds4_daemon.text.chat import Opening
from ds4_daemon.text.parse import DeltaKind, OutputParser
from ds4_daemon.text.stream import TextStream
from ds4_daemon.text.tokenizer import DSML, END_THINK, THINK, Tokenizer

_CHUNK = 512  # tokens of a prompt at once: of 256 to 2,048 none is faster by much on a CPU
_BATCH = 32  # answers at once: twice as many were slower


class Subject(NamedTuple):
    """A network with its tokenizer; `reference` is the one that it was rounded from, if any."""

    network: Network
    tokenizer: Tokenizer
    reference: Network | None = None


@dataclass(frozen=True, slots=True)
class Opened:
    """How to open a subject: what travels to a worker. `index_topk` replaces the model's own."""

    model: Path
    rounding: bool = True
    reference: Path | None = None
    index_topk: int | None = None

    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer alone."""
        with open_model(self.model) as files:
            return Tokenizer.load(files.tokenizer_source)

    def open(self) -> Subject:
        """Raises ModelFileError for what is no model of this program."""
        files = open_model(self.model)
        if self.index_topk is not None:
            files.config = replace(files.config, index_topk=self.index_topk)
        tokenizer = Tokenizer.load(files.tokenizer_source)
        network = load_network(files, device="cpu", rounding=self.rounding)
        reference = None
        if self.reference is not None:
            reference = load_network(self.reference, device="cpu", rounding=False)
        return Subject(network, tokenizer, reference)


class Started(NamedTuple):
    """A sequence whose prompt is computed, and the first token of its answer."""

    state: SessionState
    first: int


class Answer(NamedTuple):
    """An answer as a client gets it. `calls`: (name, arguments) of each, None for arguments that
    are no JSON. `leaked`: a special token that has no place in an answer, or one spelled out."""

    content: str
    reasoning: str
    calls: tuple[tuple[str, Any], ...]
    malformed: bool
    leaked: bool
    stopped: bool
    tokens: int


def extend(network: Network, state: SessionState, ids: Sequence[int]) -> np.ndarray:
    """Compute `ids` (one at least) onto the state; logits [vocab] of the last."""
    logits = None
    for start in range(0, len(ids), _CHUNK):
        piece = np.array(ids[start : start + _CHUNK], np.int32)
        (logits,) = network.forward([Segment(state, piece, Want.LAST)])
    assert logits is not None
    return logits


def started(network: Network, ids: Sequence[int], state: SessionState | None = None) -> Started:
    """A prompt, or the rest of one onto a state."""
    state = network.new_state() if state is None else state
    return Started(state, int(extend(network, state, ids).argmax()))


def greedy(network: Network, some: Sequence[Started], limit: int, stop: int) -> list[list[int]]:
    """The likeliest tokens, of all sequences side by side, up to and with `stop`, or `limit`."""
    out = [[one.first] for one in some]
    while True:
        running = [i for i, ids in enumerate(out) if ids[-1] != stop and len(ids) < limit]
        if not running:
            return out
        batch = [
            Segment(some[i].state, np.array(out[i][-1:], np.int32), Want.LAST) for i in running
        ]
        for i, logits in zip(running, network.forward(batch), strict=True):
            assert logits is not None
            out[i].append(int(logits.argmax()))


def answers(subject: Subject, prompts: Sequence[Sequence[int]], limit: int) -> list[list[int]]:
    """Greedy answers to whole prompts, as ids."""
    out: list[list[int]] = []
    for first in range(0, len(prompts), _BATCH):
        some = [started(subject.network, ids) for ids in prompts[first : first + _BATCH]]
        out += greedy(subject.network, some, limit, subject.tokenizer.eos_id)
    return out


def read(tokenizer: Tokenizer, opening: Opening, ids: Sequence[int], tools: bool = False) -> Answer:
    """What the daemon would report of these ids, and what it would hide."""
    stopped = bool(ids) and ids[-1] == tokenizer.eos_id
    said = ids[:-1] if stopped else ids
    stream, parser = TextStream(tokenizer, marks=True), OutputParser(opening)
    deltas = [delta for token in said for delta in parser.push(stream.push(token))]
    deltas += [*parser.push(stream.finish()), *parser.finish()]

    def text(kind: DeltaKind) -> str:
        return "".join(delta.text for delta in deltas if delta.kind is kind)

    names: dict[int, str] = {}
    arguments: dict[int, str] = {}
    for delta in deltas:
        if delta.kind is DeltaKind.TOOL_CALL:
            names.setdefault(delta.index, delta.name)
            arguments[delta.index] = arguments.get(delta.index, "") + delta.text
    calls = tuple((name, _json(arguments[index])) for index, name in names.items())
    placed = {DSML} if tools else set()
    if opening is Opening.REASONING:
        placed.add(END_THINK)
    shown = text(DeltaKind.CONTENT) + text(DeltaKind.REASONING)
    odd = [i for i in said if i in tokenizer.specials and tokenizer.specials[i] not in placed]
    spelled = any(s in shown for s in tokenizer.specials.values() if s not in (THINK, END_THINK))
    return Answer(text(DeltaKind.CONTENT), text(DeltaKind.REASONING), calls, bool(parser.malformed),
                  bool(odd) or spelled, stopped, len(ids))  # fmt: skip


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None
