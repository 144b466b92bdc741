"""Exercises in writing a word where it is cut into other tokens."""

import json
import random
import re
from dataclasses import fields

from ds4_daemon.text.tokenizer import Tokenizer

from models.nano.data import spelling, words
from tests.nano.test_data import TOKENIZER

_BOOK = ("The canyon lay under a pale moon, and nobody lived there but Bertram the ferryman.",)


def _exchanges(count: int) -> list[tuple[str, str]]:
    rng = random.Random(1)
    known = spelling.of_books(_BOOK)
    made: list[tuple[str, str]] = []
    while len(made) < count:
        turns = [
            m.content for m in spelling.exercises(rng, words.TRAINING, known).messages
            if m.role != "system"
        ]  # fmt: skip
        made += zip(turns[::2], turns[1::2], strict=True)
    return made


def test_answers_hold_what_was_said_and_nothing_else() -> None:
    """Letters and digits of an answer are those that were given, in order; JSON parses."""
    for question, answer in _exchanges(400):
        if "other way round" in question:
            continue
        said = "".join(re.findall(r"[a-z0-9]", question.lower()))
        if "{" in answer:
            parts = [text for pair in json.loads(answer).items() for text in pair]
        elif "as tags" in question:
            parts = [text for pair in re.findall(r"<(\w+)>(.*)</\1>", answer) for text in pair]
        else:
            parts = re.findall(r"[A-Za-z0-9 ]+", answer)
        if "JSON list" in question or question.startswith("As JSON"):
            assert json.loads(answer)
        at = 0
        for part in parts:
            letters = "".join(re.findall(r"[a-z0-9]", part.lower()))
            found = said.find(letters, at)
            assert found >= 0, (question, answer)
            at = found + len(letters)


def test_words_are_cut_differently_where_they_are_written_again() -> None:
    """The point of it: for most words the tokens asked for are not those that were said."""
    tokenizer = Tokenizer.load(TOKENIZER)
    names = words.TRAINING.towns + words.TRAINING.tool_nouns
    other = [tokenizer.encode(f" {n}") != tokenizer.encode(f'"{n}')[1:] for n in names]
    assert sum(other) > 0.9 * len(other)


def test_no_word_is_the_evaluations() -> None:
    """What books say too is left out where the evaluation asks for it."""
    asked = {n.lower() for f in fields(words.EVALUATION) for n in getattr(words.EVALUATION, f.name)}
    assert "canyon" in asked
    known = spelling.of_books(_BOOK)
    assert "moon" in known and "Bertram" in known
    assert not asked & {word.lower() for word in known}
