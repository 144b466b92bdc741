"""Stories with a small world state, and questions that the state answers.

A story is an arc with its slots filled, among sentences of `scenes`. Every beat's effects go into a
log, and the questions are answered from the state that the log leads to, so an answer is right by
construction. Called by `chat` and `mixture`; draws only from the `random.Random` it is given.
"""

import random
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from models.nano.data import arcs_of_deeds, arcs_of_two, arcs_of_wonder, scenes, words
from models.nano.data.beat import Beat
from models.nano.data.words import Pool

_VOWEL_NEXT = re.compile(r"\b([Aa]) (?=[aeiou])(?!uni|one)")
_NUMBERS = ("three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")


ARCS: tuple[tuple[Beat, ...], ...] = (
    arcs_of_two.LOST_AND_FOUND,
    arcs_of_two.GIFT,
    arcs_of_two.ANIMAL,
    arcs_of_two.QUARREL,
    arcs_of_two.ERRAND,
    arcs_of_deeds.COOKING,
    arcs_of_deeds.LEARNING,
    arcs_of_deeds.STORM,
    arcs_of_deeds.COLLECTING,
    arcs_of_wonder.MAP,
    arcs_of_wonder.DARK,
    arcs_of_wonder.SEED,
    arcs_of_wonder.LETTER,
    arcs_of_wonder.RACE,
)


class Question(NamedTuple):
    """`kind` says what it asks; `fact` are the words that a right answer must contain."""

    kind: str
    text: str
    answer: str
    fact: str


@dataclass(frozen=True, slots=True)
class Story:
    """The text, what filled its slots, what happened in order, and what may be asked."""

    text: str
    slots: Mapping[str, str]
    log: tuple[str, ...]
    questions: tuple[Question, ...]


def articles(text: str) -> str:
    """The text with "an" for "a" where a vowel follows."""
    return _VOWEL_NEXT.sub(r"\1n ", text)


def story(rng: random.Random, pool: Pool) -> Story:
    """One story of 60 to 300 words."""
    arc = rng.choice(ARCS)
    slots = _slots(rng, pool, outdoors=arc is not arcs_of_deeds.STORM)
    log: list[str] = []
    has_thing = any(effect.startswith("thing") for beat in arc for effect in beat.effects)
    openings = [line for line in scenes.OPENINGS if has_thing or "{thing}" not in line]
    sentences = [rng.choice(openings), rng.choice(scenes.MEETINGS)]
    for beat in arc:
        sentences.append(rng.choice(beat.ways))
        log += beat.effects
        if rng.random() < 0.3:
            together = rng.random() < 0.3 and _same_place(log)
            sentences.append(rng.choice(scenes.TOGETHER if together else scenes.INTERLUDES))
    if rng.random() < 0.7:
        sentences.append(rng.choice(scenes.FEELING_ENDS))
        log.append("A felt")
    if rng.random() < 0.8:
        sentences.append(rng.choice(scenes.ENDINGS))
    text = "".join(_joined(rng, _without_repeats(sentences), slots))
    return Story(text, slots, tuple(log), tuple(_questions(rng, log, slots, text)))


def _same_place(log: list[str]) -> bool:
    """Whether A and B were last seen in one place."""
    last = {entry[0]: entry for entry in log if entry[1:].startswith(" at ")}
    return "A" in last and "B" in last and last["A"][1:] == last["B"][1:]


def _slots(rng: random.Random, pool: Pool, *, outdoors: bool) -> dict[str, str]:
    first, second = rng.sample(pool.girls + pool.boys, 2)
    there = [p for p in words.PLACES if outdoors or p[0] in scenes.SHELTERS]
    _, in_q, to_q = place = rng.choice(there)
    _, in_p, to_p = rng.choice([p for p in words.PLACES if p != place])
    plain = rng.choice(words.THINGS)
    colour = rng.choice(words.COLOURS)
    slots = {
        "A": first, "B": second, "plain": plain, "colour": colour, "thing": f"{colour} {plain}",
        "inP": in_p, "toP": to_p, "inQ": in_q, "toQ": to_q,
        "town": rng.choice(pool.towns), "kin": rng.choice(words.KIN),
        "weather": rng.choice(words.WEATHERS), "pet": rng.choice(pool.pets),
        "daytime": rng.choice(("morning", "afternoon", "day", "evening")),
        "spot": rng.choice(words.SPOTS), "animal": rng.choice(words.ANIMALS),
        "food": rng.choice(words.FOODS), "feeling": rng.choice(words.FEELINGS),
        "skill": rng.choice(scenes.SKILLS), "finds": rng.choice(scenes.FINDS),
        "number": rng.choice(_NUMBERS),
    }  # fmt: skip
    for who, mark in ((first, ""), (second, "2")):
        he, him, his = ("she", "her", "her") if who in pool.girls else ("he", "him", "his")
        slots |= {f"he{mark}": he, f"him{mark}": him, f"his{mark}": his}
        slots |= {f"He{mark}": he.title(), f"His{mark}": his.title()}
    slots["himself"] = slots["him"] + "self"
    # A possessive that ends a clause has a form of its own.
    slots["hers"] = "hers" if slots["his"] == "her" else "his"
    slots["hers2"] = "hers" if slots["his2"] == "her" else "his"
    return slots


def _without_repeats(sentences: list[str]) -> list[str]:
    return list(dict.fromkeys(sentences))


def _joined(rng: random.Random, sentences: list[str], slots: Mapping[str, str]) -> list[str]:
    pieces = []
    since_break = 0
    for index, sentence in enumerate(sentences):
        pieces.append(articles(sentence.format_map(slots)))
        since_break += 1
        if index + 1 < len(sentences):
            broken = since_break >= 2 and rng.random() < 0.4
            pieces.append("\n\n" if broken else " ")
            since_break = 0 if broken else since_break
    return pieces


class _Asking:
    """Collects questions whose slots are filled."""

    def __init__(self, rng: random.Random, slots: Mapping[str, str]) -> None:
        self._rng = rng
        self._slots = slots
        self.asked: list[Question] = []

    def ask(self, kind: str, forms: tuple[str, ...], answer: str, fact: str) -> None:
        question = self._rng.choice(forms)
        filled = (articles(line.format_map(self._slots)) for line in (question, answer, fact))
        self.asked.append(Question(kind, *filled))


def _questions(
    rng: random.Random, log: list[str], slots: Mapping[str, str], text: str
) -> list[Question]:
    asking = _Asking(rng, slots)
    _ask_thing(asking, log)
    for who in "AB":
        _ask_place(asking, log, who)
    for effect, kind, forms, answer, fact in _SIMPLE:
        if effect in log:
            asking.ask(kind, forms, answer, fact)
    for name, kind, forms, answer in _BACKGROUND:
        if re.search(rf"\b{re.escape(slots[name])}\b", text):
            asking.ask(kind, forms, answer, f"{{{name}}}")
    asking.ask("unsaid", _UNSAID, "The story does not say.", "does not say")
    return asking.asked


def _ask_thing(asking: _Asking, log: list[str]) -> None:
    """Where the thing went, and its colour."""
    states = [entry for entry in log if entry.startswith("thing")]
    if not states:
        return
    last = states[-1]
    if last == "thing at spot":
        forms = ("Where is the {plain} now?", "Where is the {plain} at the end?")
        asking.ask("spot", forms, "The {plain} is {spot}.", "{spot}")
    else:
        who = f"{{{last.split()[-1]}}}"
        forms = ("Who has the {plain} at the end?", "Who has the {plain} now?")
        asking.ask("holder", forms, f"{who} has the {{plain}}.", who)
        if "thing at spot" in states:
            forms = ("Where was the {plain} before?", "Where did the {plain} lie for a while?")
            asking.ask("hidden", forms, "The {plain} was {spot}.", "{spot}")
    forms = ("What colour is the {plain}?", "Which colour does the {plain} have?")
    asking.ask("colour", forms, "The {plain} is {colour}.", "{colour}")


def _ask_place(asking: _Asking, log: list[str], who: str) -> None:
    """Where somebody was: at most two places, P before Q."""
    places = [f"{{in{place}}}" for place in "PQ" if f"{who} at {place}" in log]
    name = f"{{{who}}}"
    if len(places) == 2:
        first = (f"Where was {name} first?",)
        asking.ask(f"first place {who}", first, f"First {name} was {places[0]}.", places[0])
        forms = (f"Where was {name} after that?", f"Where did {name} go later?")
        asking.ask(f"last place {who}", forms, f"After that {name} was {places[1]}.", places[1])
    elif places:
        forms = (f"Where was {name}?", f"Where did the story take {name}?")
        asking.ask(f"place {who}", forms, f"{name} was {places[0]}.", places[0])


_SIMPLE = (
    ("A felt", "feeling", ("How did {A} feel in the end?", "How was {A} at the end?"),
     "{A} was {feeling}.", "{feeling}"),
    ("pet named", "pet", ("What was the {animal} called?", "What is the name of the {animal}?"),
     "The {animal} was called {pet}.", "{pet}"),
    ("pet named", "animal", ("What kind of animal was {pet}?", "Who was {pet}?"),
     "{pet} was a {animal}.", "{animal}"),
    ("pet ate", "pet food", ("What did {pet} eat?",), "{pet} ate {food}.", "{food}"),
    ("A ate", "food", ("What did {A} eat?",), "{A} ate {food}.", "{food}"),
    ("A learned", "skill", ("What did {A} want to learn?", "What did {A} practise?"),
     "{A} wanted to learn to {skill}.", "{skill}"),
    ("B taught", "teacher", ("Who taught {A}?", "Who helped {A} to learn?"),
     "{B} did.", "{B}"),
    ("number found", "number", ("How many {finds} did they find?",),
     "They found {number} {finds}.", "{number}"),
)  # fmt: skip
_BACKGROUND = (
    ("town", "town", ("In which town does {A} live?", "What is the name of the town?"),
     "The town is called {town}."),
    ("B", "friend", ("Who was with {A}?", "What is the name of {A}'s friend?"),
     "{A} was with {B}."),
)  # fmt: skip
_UNSAID = (
    "What is {A}'s last name?", "How old is {B}'s sister?", "What did {B} dream that night?",
    "How much did the {plain} cost?", "What was {A}'s favourite song?",
    "What colour are {B}'s eyes?", "When is {A}'s birthday?",
)  # fmt: skip


def mentioned(tale: Story) -> tuple[str, ...]:
    """What somebody could ask to hear about and would find in this story."""
    found = [tale.slots["A"], tale.slots["B"]]
    if any(entry.startswith("thing") for entry in tale.log):
        found.append("a " + tale.slots["thing"])
    if "pet named" in tale.log:
        found.append("a " + tale.slots["animal"])
    return tuple(articles(name) for name in found)
