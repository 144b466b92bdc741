"""Words written once more where other signs stand before them: in quotes, in JSON, in a name.

The tokenizer cuts a word differently after a space than after a quote or a bracket (" can|y|on",
but ">c|any|on"), so an argument of a tool is no copy of what the user said, token by token: a model
has to know how each piece is spelled. Tool tasks teach that slowly, a few words at a time. Here
nearly every token of an answer is such a step. Called by `mixture`; words are of the training's
pool and of its books, and none is of the evaluation's.
"""

import json
import random
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields

from ds4_daemon.text.conversation import Conversation, Message

from models.nano.data.chat import Exchange
from models.nano.data.turns import assistant, conversation, user
from models.nano.data.words import EVALUATION, Pool

_FIELDS = (
    "city", "town", "name", "person", "text", "message", "title", "code", "key", "place", "owner",
    "colour", "query", "user", "label", "item",
)  # fmt: skip
_MOST = 8  # words of one exercise
_WORD = re.compile(r"[A-Za-z]{3,14}")


def of_books(texts: Iterable[str]) -> tuple[str, ...]:
    """The words of some texts, each once, without those that the evaluation asks for."""
    taken = {
        part.lower()
        for field in fields(EVALUATION)
        for name in getattr(EVALUATION, field.name)
        for part in _WORD.findall(name)
    }
    found = {word: None for text in texts for word in _WORD.findall(text)}
    return tuple(word for word in found if word.lower() not in taken)


def exercises(rng: random.Random, pool: Pool, words: Sequence[str]) -> Conversation:
    """A chat of two to five of them."""
    messages: list[Message] = []
    for _ in range(rng.randint(2, 5)):
        one = rng.choice(_KINDS)(rng, pool, words)
        messages += [user(one.question), assistant(one.answer)]
    return conversation(rng, messages, system=0.1)


def _value(rng: random.Random, pool: Pool, words: Sequence[str]) -> str:
    """Something that a user may name: a word, a name, a code."""
    match rng.randrange(6):
        case 0:
            return rng.choice(pool.people)
        case 1:
            return rng.choice(pool.towns)
        case 2:
            return f"{rng.choice(pool.codes)}{rng.choice('-_')}{rng.randrange(10, 1000)}"
        case 3:
            return " ".join(rng.choice(words) for _ in range(rng.randint(2, 3)))
        case _:
            return rng.choice(words)


def _values(rng: random.Random, pool: Pool, words: Sequence[str]) -> list[str]:
    return [_value(rng, pool, words) for _ in range(rng.randint(2, _MOST))]


def _listed(rng: random.Random, pool: Pool, words: Sequence[str]) -> Exchange:
    values = _values(rng, pool, words)
    asked = rng.choice(
        ("Write as a JSON list: {}", "As JSON, please: {}", "Make a JSON list of these: {}.")
    )
    return Exchange(asked.format(", ".join(values)), json.dumps(values), "")


def _enclosed(rng: random.Random, pool: Pool, words: Sequence[str]) -> Exchange:
    values = _values(rng, pool, words)
    opened, closed, said = rng.choice(
        (('"', '"', "quotes"), ("(", ")", "brackets"), ("<", ">", "angle brackets"),
         ("[", "]", "square brackets"), ("'", "'", "single quotes"))
    )  # fmt: skip
    question = f"Put each in {said}: {', '.join(values)}"
    return Exchange(question, "\n".join(f"{opened}{value}{closed}" for value in values), "")


def _named(rng: random.Random, pool: Pool, words: Sequence[str]) -> Exchange:
    names = rng.sample(_FIELDS, rng.randint(1, 5))
    given = {name: _value(rng, pool, words) for name in names}
    told = ", ".join(f"{name} is {value}" for name, value in given.items())
    if rng.random() < 0.5:
        return Exchange(f"Write as a JSON object: {told}.", json.dumps(given), "")
    tags = "\n".join(f"<{name}>{value}</{name}>" for name, value in given.items())
    return Exchange(f"Write as tags: {told}.", tags, "")


def _joined(rng: random.Random, pool: Pool, words: Sequence[str]) -> Exchange:
    """Names of functions from words, or the words of names."""
    pairs = [
        (rng.choice(pool.tool_verbs), rng.choice(pool.tool_nouns))
        for _ in range(rng.randint(1, _MOST))
    ]
    apart = rng.random() < 0.3
    said, join = rng.choice(_JOINTS[:-1] if apart else _JOINTS)
    names, told = ", ".join(join(*pair) for pair in pairs), ", ".join(map(" ".join, pairs))
    if apart:
        return Exchange(f"Which words are these: {names}?", told, "")
    return Exchange(f"Write as {said}: {told}.", names, "")


_JOINTS: tuple[tuple[str, Callable[[str, str], str]], ...] = (
    ("snake case", lambda a, b: f"{a}_{b}"), ("camel case", lambda a, b: a + b.title()),
    ("kebab case", lambda a, b: f"{a}-{b}"), ("a path", lambda a, b: f"{a}.{b}"),
    ("snake case, the other way round", lambda a, b: f"{b}_{a}"),
)  # fmt: skip
_KINDS = (_listed, _enclosed, _named, _joined)
