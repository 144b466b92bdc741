"""Recall of a planted fact by its distance, with and without the compressed rows.

A text opens with a few facts of one relation about different people, between sentences of held-out
stories, and goes on with such stories. It is prefilled once. Wherever a fact lies exactly one of
the distances back, its question is asked: on a copy of the state as it is there, with the prompt
that a chat of the text so far and the question renders to, token for token (the copy is taken where
both prompts part). So each fact is asked at every distance, and no question sees another.

The distance is the tokens from the last of the fact to the last of the question, at most
CLOSE_TOKENS less than it is called, because a text is cut before a word. An answer is right if it
has the fact's value and no other's of its text. The control asks on another copy, whose compressed
entries and indexer keys are zeros: what is left are the windows' rows, and what lies less than a
whole window of pooling back.
"""

import copy
import math
import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from ds4_daemon.model.state import SessionState
from ds4_daemon.text.chat import render
from ds4_daemon.text.conversation import Conversation
from ds4_daemon.text.tokenizer import Tokenizer

from models.nano.data import recall, words
from models.nano.data.turns import user
from models.nano.data.words import Pool
from models.nano.evaluation.subject import Answer, Started, Subject, extend, greedy, read, started

# The last is 8,000 so that a prompt ends within the longest rows of training, 8,192.
DISTANCES = {"128": 128, "512": 512, "1k": 1024, "2k": 2048, "4k": 4096, "8k": 8000}
CLOSE_TOKENS = 6
FACTS = 4  # a text
_ANSWER_TOKENS = 32
_ONE_IN_TWENTY = 1.645  # deviations of a normal distribution, one-sided
_SHOWN = 12  # wrong answers
_SPARE_TOKENS = 100  # at the end of a text, where joined paragraphs take fewer tokens than apart
_SENTENCE = r"[A-Z][^.!?\n\"]{20,60}\."
_RELATIONS = {  # how a question of a relation is told from the others
    "code word": ("code word",),
    "town": (" live?", "at home"),
    "pet": (" pet",),
    "key": (" key",),
    "food": (" food", "like to eat"),
    "number": (" number",),
    "train": (" train",),
    "last name": ("last name",),
    "belonging": (" own?", "belongs to"),
}


class Ask(NamedTuple):
    """A question on a text: `shared` of its prompt's ids are the text's own."""

    distance: str
    fact: recall.Fact
    others: tuple[str, ...]
    ids: list[int]
    shared: int
    exact_tokens: int


@dataclass(frozen=True, slots=True)
class Text:
    """Ids of a chat that begins with a long text, and the questions to ask on the way."""

    ids: list[int]
    asks: tuple[Ask, ...]


class Outcome(NamedTuple):
    """How a question for a fact was answered. `zeroed`: without compressed rows; `others`: with the
    value of another fact of the text."""

    distance: str
    relation: str
    zeroed: bool
    right: bool
    others: bool
    chance: float
    exact_tokens: int
    fact: recall.Fact
    answer: Answer


def relation_of(question: str) -> str:
    """The relation that a question asks for."""
    found = [n for n, marks in _RELATIONS.items() if any(mark in question for mark in marks)]
    if len(found) != 1:
        raise ValueError(f"{question!r} asks for {found or 'no relation'}: see _RELATIONS")
    return found[0]


def chance(relation: str, pool: Pool) -> float:
    """How often the best guess is right without the fact: values are drawn evenly."""
    values = {
        "code word": len(pool.codes) * 900, "town": len(pool.towns), "pet": len(pool.pets),
        "key": len(words.SPOTS), "food": len(words.FOODS), "number": 900 * 900,
        "train": 12 * 12, "last name": len(pool.surnames),
        "belonging": len({c for c in words.COLOURS if c[0] not in "aeiou"}) * len(words.THINGS),
    }  # fmt: skip
    return 1 / values[relation]


def has(answer: str, value: str) -> bool:
    """Whether the answer has the value as words of its own."""
    return bool(re.search(rf"(?<![\w:-]){re.escape(value)}(?![\w:-])", answer))


def texts(
    rng: random.Random, pool: Pool, tales: Sequence[str], tokenizer: Tokenizer, count: int,
    distances: dict[str, int] = DISTANCES,
) -> list[Text]:  # fmt: skip
    """`count` texts, each of FACTS facts that are asked at every distance."""
    return [_text(rng, pool, tales, tokenizer, distances) for _ in range(count)]


def _text(
    rng: random.Random, pool: Pool, tales: Sequence[str], tokenizer: Tokenizer,
    distances: dict[str, int],
) -> Text:  # fmt: skip
    facts = _alike(rng, pool)
    sentences = [s for tale in tales for s in re.findall(_SENTENCE, tale)]
    paragraphs = recall.filler(rng, tales, 100)
    ends: list[int] = []  # characters up to the end of each fact
    for fact in facts:
        paragraphs.append(fact.statement)
        ends.append(len("\n\n".join(paragraphs)))
        paragraphs.append(rng.choice(sentences))
    opening = "\n\n".join(paragraphs)
    stories = rng.sample(list(tales), len(tales))
    length = len(tokenizer.encode(opening))
    needed = length + max(distances.values()) + _SPARE_TOKENS
    while length < needed:
        if not stories:
            stories = rng.sample(list(tales), len(tales))
        paragraphs.append(stories.pop())
        length += len(tokenizer.encode("\n\n" + paragraphs[-1]))
    text = "\n\n".join(paragraphs)
    ids = _prompt(text, tokenizer)
    asks = []
    for fact, end in zip(facts, ends, strict=True):
        others = tuple(other.value for other in facts if other is not fact)
        for name, distance in distances.items():
            asked, exact = _asked(text, fact, end, distance, tokenizer)
            asks.append(Ask(name, fact, others, asked, _shared(ids, asked), exact))
    return Text(ids, tuple(sorted(asks, key=lambda ask: ask.shared)))


def _alike(rng: random.Random, pool: Pool) -> list[recall.Fact]:
    while True:
        facts = recall.facts(rng, pool, FACTS)
        if len({relation_of(fact.question) for fact in facts}) == 1:
            return facts


def _prompt(text: str, tokenizer: Tokenizer) -> list[int]:
    return render(Conversation((user(text),), thinking=False), tokenizer).ids


def _asked(
    text: str, fact: recall.Fact, end: int, distance: int, tokenizer: Tokenizer
) -> tuple[list[int], int]:
    """The prompt that asks for the fact `distance` tokens after its end, and the exact number."""
    question = "\n\n" + fact.question
    room = distance - len(tokenizer.encode(question))
    after = tokenizer.encode(text[end : end + 12 * distance])
    for tokens in range(room, 0, -1):
        if tokenizer.piece(after[tokens])[:1] in (b" ", b"\n"):  # the next word is cut off
            between = tokenizer.decode(after[:tokens])
            break
    else:
        raise ValueError(f"a distance of {distance} tokens leaves no room for {fact.question!r}")
    exact = len(tokenizer.encode(between + question))
    return _prompt(text[:end] + between + question, tokenizer), exact


def _shared(one: Sequence[int], other: Sequence[int]) -> int:
    pairs = zip(one, other, strict=False)
    return next(i for i, (a, b) in enumerate(pairs) if a != b)


def forget(state: SessionState) -> None:
    """Make every compressed entry and every key of an indexer zeros."""
    for layer in state.layers:
        for kept in (layer.compressor, layer.indexer):
            if kept is not None and len(kept.entries):
                zeros = np.zeros_like(np.asarray(kept.entries.view(), np.float32))
                kept.entries.adopt(zeros, len(zeros))


def measure(subject: Subject, cases: list[Text]) -> list[list[Outcome]]:
    """Every question of each text, live and zeroed."""
    return [_measured(subject, text, controls=(False, True)) for text in cases]


def measure_live(subject: Subject, cases: list[Text]) -> list[list[Outcome]]:
    """Every question of each text, live only."""
    return [_measured(subject, text, controls=(False,)) for text in cases]


def _measured(subject: Subject, text: Text, controls: Sequence[bool]) -> list[Outcome]:
    network, tokenizer = subject.network, subject.tokenizer
    state, done = network.new_state(), 0
    asked: list[tuple[Ask, bool]] = []
    begun: list[Started] = []
    for ask in text.asks:
        if ask.shared > done:
            extend(network, state, text.ids[done : ask.shared])
            done = ask.shared
        for zeroed in controls:
            fork = copy.deepcopy(state)
            if zeroed:
                forget(fork)
            asked.append((ask, zeroed))
            begun.append(started(network, ask.ids[done:], fork))
    out = []
    opening = render(Conversation((user("?"),), thinking=False), tokenizer).opening
    ids = greedy(network, begun, _ANSWER_TOKENS, tokenizer.eos_id)
    for (ask, zeroed), said in zip(asked, ids, strict=True):
        answer = read(tokenizer, opening, said)
        relation = relation_of(ask.fact.question)
        others = any(has(answer.content, value) for value in ask.others)
        right = has(answer.content, ask.fact.value) and not others
        guess = chance(relation, words.EVALUATION)
        told = ask.distance, relation, zeroed, right, others, guess, ask.exact_tokens
        out.append(Outcome(*told, ask.fact, answer))
    return out


def rates(outcomes: Iterable[Outcome]) -> dict[str, dict[str, float]]:
    """By distance: n, the shares that are right live and zeroed, and that have another's value;
    chance, and what chance alone exceeds once in twenty times; the exact tokens."""
    groups: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        groups.setdefault(outcome.distance, []).append(outcome)
    out = {}
    for distance, some in groups.items():
        live = [o for o in some if not o.zeroed]
        zeroed = [o.right for o in some if o.zeroed]
        guess = sum(o.chance for o in live) / len(live)
        spread = math.sqrt(sum(o.chance * (1 - o.chance) for o in live)) / len(live)
        out[distance] = {
            "n": len(live),
            "right": sum(o.right for o in live) / len(live),
            "others": sum(o.others for o in live) / len(live),
            "chance": guess,
            "chance_most": guess + _ONE_IN_TWENTY * spread,
            "least_tokens": min(o.exact_tokens for o in live),
            "most_tokens": max(o.exact_tokens for o in live),
        } | ({"zeroed": sum(zeroed) / len(zeroed)} if zeroed else {})
    return out


def by_relation(outcomes: Iterable[Outcome]) -> dict[str, dict[str, float]]:
    """By relation, then by distance: the share that is right live."""
    groups: dict[str, dict[str, list[bool]]] = {}
    for o in outcomes:
        if not o.zeroed:
            groups.setdefault(o.relation, {}).setdefault(o.distance, []).append(o.right)
    return {
        relation: {distance: sum(r) / len(r) for distance, r in rows.items()}
        | {"n": len(next(iter(rows.values())))}
        for relation, rows in sorted(groups.items())
    }


def wrong(outcomes: Iterable[Outcome]) -> list[list[str]]:
    """The first few wrong answers: distance, question, what is right, what was said."""
    some = [o for o in outcomes if not o.zeroed and not o.right]
    return [
        [o.distance, o.fact.question, o.fact.value, o.answer.content]
        for o in some[:: len(some) // _SHOWN or 1]
    ][:_SHOWN]
