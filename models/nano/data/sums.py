"""Generated exercises with one right answer: sums, counting, sorting, copying."""

import random

from ds4_daemon.text.conversation import Conversation

from models.nano.data import knowledge
from models.nano.data.chat import Exchange
from models.nano.data.turns import assistant, conversation, user
from models.nano.data.words import Pool

_WORDS = tuple({w for members in knowledge.LISTS.values() for w in members.split()})
WORDS = tuple(sorted(w for w in _WORDS if w.islower()))


def arithmetic(rng: random.Random) -> Exchange:
    """A sum of numbers of one to three digits; both are equally often short."""
    left, right = (rng.randrange(10 ** rng.randint(1, 3)) for _ in range(2))
    sign = rng.choices("+-x", (5, 4, 2))[0]
    if sign == "x":
        left, right = left % 13, right % 13
    elif sign == "-" and left < right:
        left, right = right, left
    result = {"+": left + right, "-": left - right, "x": left * right}[sign]
    word = {"+": "plus", "-": "minus", "x": "times"}[sign]
    form = rng.choice(
        ("What is {0} {1} {2}?", "{0} {1} {2} =", "How much is {0} {3} {2}?", "{0} {3} {2}?",
         "Calculate {0} {1} {2}.", "What is {0} {3} {2}?")
    )  # fmt: skip
    question = form.format(left, sign, right, word)
    return Exchange(question, f"{left} {sign} {right} = {result}", _worked(left, sign, right))


def _worked(left: int, sign: str, right: int) -> str:
    """How one would work it out: hundreds, tens and ones apart."""
    if sign == "x" or right < 10:
        return f"I work out {left} {sign} {right}."
    steps, total = [], left
    for unit in (100, 10, 1):
        part = right // unit % 10 * unit
        if part:
            after = total + part if sign == "+" else total - part
            steps.append(f"{total} {sign} {part} = {after}.")
            total = after
    return " ".join(steps)


def counting(rng: random.Random) -> Exchange:
    start, length = rng.randint(0, 90), rng.randint(3, 10)
    step = rng.choice((1, 1, 1, 2, 5, 10))
    numbers = [start + step * i for i in range(length)]
    asked = f"Count from {numbers[0]} to {numbers[-1]}"
    if step > 1:
        asked += f" in steps of {step}"
    elif rng.random() < 0.3:
        numbers.reverse()
        asked = f"Count down from {numbers[0]} to {numbers[-1]}"
    return Exchange(asked + ".", ", ".join(map(str, numbers)), "One number after the other.")


def sorting(rng: random.Random) -> Exchange:
    if rng.random() < 0.6:
        numbers = rng.sample(range(1000 if rng.random() < 0.5 else 100), rng.randint(3, 6))
        given = ", ".join(map(str, numbers))
        pick = rng.random()
        if pick < 0.25:
            return Exchange(f"Which is the largest: {given}?", str(max(numbers)), f"From {given}.")
        if pick < 0.5:
            return Exchange(f"Which is the smallest: {given}?", str(min(numbers)), f"From {given}.")
        answer = ", ".join(map(str, sorted(numbers)))
        return Exchange(f"Sort these numbers: {given}", answer, "The smallest comes first.")
    chosen = rng.sample(WORDS, rng.randint(3, 5))
    answer = ", ".join(sorted(chosen))
    return Exchange(f"Sort these words: {', '.join(chosen)}", answer, "By the alphabet.")


def copying(rng: random.Random, pool: Pool) -> Exchange:
    mixed = (*WORDS, *pool.people, *map(str, range(0, 1000, 7)), *pool.codes)
    pick = rng.randrange(9)
    chosen = rng.sample(mixed, rng.randint(2, 9 if pick < 4 else 40))
    text = " ".join(chosen)
    if pick == 0:
        return Exchange(f"Write this backwards, word by word: {text}", " ".join(chosen[::-1]),
                        "The last word comes first.")  # fmt: skip
    if pick == 1:
        place = rng.randrange(min(len(chosen), 5))
        name = ("first", "second", "third", "fourth", "fifth")[place]
        return Exchange(f"What is the {name} word of: {text}", chosen[place], "I count the words.")
    if pick == 2:
        return Exchange(f"How many words are these: {text}", str(len(chosen)), "I count them.")
    if pick == 3:
        word = rng.choice(WORDS)
        return Exchange(f"Spell the word {word}.", "-".join(word), "Letter by letter.")
    form = rng.choice(("Repeat after me: {}", "Say this again: {}", "Copy this: {}", "Repeat: {}"))
    return Exchange(form.format(text), text, "I repeat it.")


def exercise(rng: random.Random, pool: Pool) -> Exchange:
    """Any exercise, sums most often."""
    pick = rng.random()
    if pick < 0.45:
        return arithmetic(rng)
    if pick < 0.55:
        return counting(rng)
    return sorting(rng) if pick < 0.7 else copying(rng, pool)


def exercises(rng: random.Random, pool: Pool) -> Conversation:
    """A chat of one to six exercises."""
    thinking = rng.random() < 0.15
    messages = []
    for _ in range(rng.randint(1, 6)):
        one = exercise(rng, pool)
        messages += [user(one.question), assistant(one.answer, one.thought if thinking else "")]
    return conversation(rng, messages, thinking=thinking, system=0.1)
