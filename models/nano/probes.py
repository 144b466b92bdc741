"""Whether the model under training can do what it will be asked for: exact answers, by kind.

An answer is right if every one of its tokens is the likeliest one after the right tokens before it,
which is what greedy decoding would write. Names, facts and tools are of the evaluation's pool.
Quick and rough, for the log; `evaluate.py` measures what ships.
"""

import random
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from ds4_daemon.text.conversation import Conversation

DISTANCES = (128, 512, 1024, 2048, 4000)
_SEED = 7
_CASES = 48
_BLOCK = 128  # rows are of a multiple of the window
_MICRO_TOKENS = 32_768


class Probe(NamedTuple):
    """ids of a whole chat; the answer begins at `start`."""

    ids: list[int]
    start: int


@cache
def probes(corpus: Path) -> dict[str, list[Probe]]:
    """By kind: recall by distance, calls of tools, no call, sums."""
    from ds4_daemon.text.tokenizer import ASSISTANT, DSML, Tokenizer

    from models.nano.checkpoint import TOKENIZER
    from models.nano.data import corpus as texts
    from models.nano.data import mixture, recall, sums, tools, words
    from models.nano.data.encode import Encoder
    from models.nano.data.turns import assistant, conversation, user
    from models.nano.heldout import documents

    tokenizer = Tokenizer.load(TOKENIZER)
    encoder = Encoder(tokenizer)
    rng = random.Random(_SEED)
    tales = documents(corpus / "heldout.jsonl")["tinystories"]
    drawn_on = mixture.source(texts.read(corpus), words.EVALUATION)
    assistant_id, dsml = tokenizer.special_id(ASSISTANT), tokenizer.special_id(DSML)

    def probe(chat: Conversation, opening: int | None = None) -> Probe:
        ids = encoder.chat(chat).ids
        last = max(i for i, token in enumerate(ids) if token == assistant_id)
        start = ids.index(opening, last) if opening is not None else last + 2
        return Probe(ids, start)

    def count(text: str) -> int:
        return len(tokenizer.encode(text))

    out: dict[str, list[Probe]] = {}
    for distance in DISTANCES:
        cases = []
        for _ in range(_CASES):
            asked, fact = recall.at_distance(rng, words.EVALUATION, tales, distance, count)
            turns = (*asked.messages, assistant(fact.answer))
            cases.append(probe(replace(asked, messages=turns)))
        out[f"recall_{distance}"] = cases
    out["tools"] = [
        probe(tools.called(rng, words.EVALUATION, finished=False).conversation, dsml)
        for _ in range(2 * _CASES)
    ]
    out["no_tool"] = [probe(tools.not_called(rng, drawn_on).conversation) for _ in range(_CASES)]
    asked_sums = [sums.arithmetic(rng) for _ in range(2 * _CASES)]
    chats = [[user(one.question), assistant(one.answer)] for one in asked_sums]
    out["sums"] = [probe(conversation(rng, turns, system=0)) for turns in chats]
    return out


def rates(trainee: Any, corpus: Path) -> dict[str, float]:
    """Share of answers that are right, by kind."""
    with torch.no_grad():
        return {
            kind: round(sum(_right(trainee, cases)) / len(cases), 3)
            for kind, cases in probes(corpus).items()
        }


def _right(trainee: Any, cases: list[Probe]) -> list[bool]:
    longest = max(len(case.ids) for case in cases)
    width = -(-longest // _BLOCK) * _BLOCK
    rows = max(1, _MICRO_TOKENS // width)
    out: list[bool] = []
    for first in range(0, len(cases), rows):
        some = cases[first : first + rows]
        ids = torch.zeros(len(some), width, dtype=torch.long)
        for row, case in enumerate(some):
            ids[row, : len(case.ids)] = torch.tensor(case.ids)
        hidden = trainee.hidden(ids.to(trainee.device))
        for row, case in enumerate(some):
            guessed = trainee.net.lm_head(hidden[row, case.start - 1 : len(case.ids) - 1])
            out.append(guessed.argmax(-1).tolist() == case.ids[case.start :])
    return out
