"""Stories with a small world state, and questions that the state answers.

A story is an arc of `scenes` with its slots filled. Every beat's effects go into a log, and the
questions are answered from the state that the log leads to, so an answer is right by construction.
Called by `chat` and `mixture`; draws only from the `random.Random` it is given.
"""

import random
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from models.nano.data import scenes, words
from models.nano.data.words import Pool

_VOWEL_NEXT = re.compile(r"\b([Aa]) (?=[aeiou])")
_NUMBERS = ("three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")


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


def story(rng: random.Random, pool: Pool) -> Story:
    """One story of 60 to 300 words."""
    arc = rng.choice(scenes.ARCS)
    slots = _slots(rng, pool, outdoors=arc is not scenes.STORM)
    log: list[str] = []
    sentences = [rng.choice(scenes.OPENINGS), rng.choice(scenes.MEETINGS)]
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
    first, second = rng.sample(pool.people, 2)
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
        filled = sentence.format_map(slots)
        pieces.append(_VOWEL_NEXT.sub(r"\1n ", filled))
        since_break += 1
        if index + 1 < len(sentences):
            broken = since_break >= 2 and rng.random() < 0.4
            pieces.append("\n\n" if broken else " ")
            since_break = 0 if broken else since_break
    return pieces


def _questions(
    rng: random.Random, log: list[str], slots: Mapping[str, str], text: str
) -> list[Question]:
    asked: list[Question] = []

    def ask(kind: str, forms: tuple[str, ...], answer: str, fact: str) -> None:
        question, said = (line.format_map(slots) for line in (rng.choice(forms), answer))
        asked.append(Question(kind, question, said, fact.format_map(slots)))

    at: dict[str, list[str]] = {"A": [], "B": []}
    holders: list[str] = []
    spot_used = False
    for entry in log:
        match entry.split():
            case [("A" | "B") as who, "at", place]:
                if at[who][-1:] != [place]:
                    at[who].append(place)
            case ["thing", "held", who]:
                holders.append(who)
            case ["thing", "at", "spot"]:
                spot_used = True
    last_held = next((e for e in reversed(log) if e.startswith("thing")), "")
    if last_held.startswith("thing held"):
        who = last_held.split()[-1]
        ask(
            "holder",
            ("Who has the {plain} at the end?", "Who has the {plain} now?"),
            f"{{{who}}} has the {{plain}}.",
            f"{{{who}}}",
        )
    elif last_held:
        ask(
            "spot",
            ("Where is the {plain} now?", "Where is the {plain} at the end?"),
            "The {plain} is {spot}.",
            "{spot}",
        )
    if spot_used and last_held != "thing at spot":
        ask(
            "hidden",
            ("Where was the {plain} before?", "Where did the {plain} lie for a while?"),
            "The {plain} was {spot}.",
            "{spot}",
        )
    if holders or spot_used:
        ask(
            "colour",
            ("What colour is the {plain}?", "Which colour does the {plain} have?"),
            "The {plain} is {colour}.",
            "{colour}",
        )
    for who, places in at.items():
        if len(places) == 2:
            asked_first = f"First {{{who}}} was {{in{places[0]}}}."
            asked_last = f"After that {{{who}}} was {{in{places[1]}}}."
            ask(f"first place {who}", (f"Where was {{{who}}} first?",), asked_first,
                f"{{in{places[0]}}}")  # fmt: skip
            ask(f"last place {who}", (f"Where was {{{who}}} after that?", f"Where did {{{who}}} go "
                "later?"), asked_last, f"{{in{places[1]}}}")  # fmt: skip
        elif places:
            ask(f"place {who}", (f"Where was {{{who}}}?", f"Where did the story take {{{who}}}?"),
                f"{{{who}}} was {{in{places[0]}}}.", f"{{in{places[0]}}}")  # fmt: skip
    for effect, kind, forms, answer, fact in _SIMPLE:
        if effect in log:
            ask(kind, forms, answer, fact)
    for name, kind, forms, answer in _BACKGROUND:
        if re.search(rf"\b{re.escape(slots[name])}\b", text):
            ask(kind, forms, answer, f"{{{name}}}")
    ask("unsaid", _UNSAID, "The story does not say.", "does not say")
    return asked


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
    ("B", "friend", ("Who was with {A}?", "What is the name of {A}'s friend?"), "{A} was with {B}."),
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
    return tuple(_VOWEL_NEXT.sub(r"\1n ", name) for name in found)
