"""Facts planted in real stories and asked for much later, among others of their kind.

`facts` makes facts whose subjects differ, `planted` hides them in running text as one long user
turn, `told` spreads them over a chat. An evaluation places one fact at an exact distance with
`at_distance`. Answers give the fact's own words and little else: nothing but the text can give
them, and what is to be learned is where to look, so `listed` asks for many facts of a short text.
"""

import random
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from ds4_daemon.text.conversation import Conversation, Message

from models.nano.data import words
from models.nano.data.turns import assistant, conversation, user
from models.nano.data.words import Pool


class Fact(NamedTuple):
    """`value` is what a right answer must contain and a wrong one lacks."""

    statement: str
    question: str
    answer: str
    value: str


class _Relation(NamedTuple):
    statements: tuple[str, ...]
    questions: tuple[str, ...]
    answer: str
    value: Callable[[random.Random, Pool], str]


def _code(rng: random.Random, pool: Pool) -> str:
    return f"{rng.choice(pool.codes)}-{rng.randrange(100, 1000)}"


def _time(rng: random.Random, _: Pool) -> str:
    return f"{rng.randint(1, 12)}:{rng.randrange(0, 60, 5):02}"


_CONSONANT_COLOURS = tuple(colour for colour in words.COLOURS if colour[0] not in "aeiou")
# {who} is the subject, {value} the fact; it follows a space wherever it stands.
_RELATIONS = (
    _Relation(
        ("The code word of {who} is {value}.", "{who}'s code word is {value}.",
         "Remember: the code word of {who} is {value}."),
        ("What is the code word of {who}?", "What is {who}'s code word?"),
        "The code word is {value}.", _code,
    ),
    _Relation(
        ("{who} lives in {value}.", "{who} has a house in {value}.", "{who} comes from {value}."),
        ("Where does {who} live?", "In which town is {who} at home?"),
        "In {value}.", lambda rng, pool: rng.choice(pool.towns),
    ),
    _Relation(
        ("{who}'s pet is called {value}.", "{who} has a pet named {value}.",
         "The name of {who}'s pet is {value}."),
        ("What is {who}'s pet called?", "What is the name of {who}'s pet?"),
        "It is called {value}.", lambda rng, pool: rng.choice(pool.pets),
    ),
    _Relation(
        ("{who} keeps the key {value}.", "{who} hid the key {value}.",
         "The key of {who} lies {value}."),
        ("Where is the key of {who}?", "Where did {who} put the key?"),
        "The key is {value}.", lambda rng, _: rng.choice(words.SPOTS),
    ),
    _Relation(
        ("{who}'s favourite food is {value}.", "{who} likes {value} best.",
         "Nothing tastes better to {who} than {value}."),
        ("What is {who}'s favourite food?", "What does {who} like to eat best?"),
        "It is {value}.", lambda rng, _: rng.choice(words.FOODS),
    ),
    _Relation(
        ("The phone number of {who} is {value}.", "{who}'s number is {value}."),
        ("What is the phone number of {who}?", "What is {who}'s number?"),
        "The number is {value}.",
        lambda rng, _: f"{rng.randrange(100, 1000)} {rng.randrange(100, 1000)}",
    ),
    _Relation(
        ("{who}'s train leaves at {value}.", "At {value} {who} takes the train."),
        ("When does {who}'s train leave?", "At what time does {who} take the train?"),
        "It leaves at {value}.", _time,
    ),
    _Relation(
        ("{who}'s full name is {who} {value}.", "The last name of {who} is {value}."),
        ("What is {who}'s last name?", "What is the last name of {who}?"),
        "The last name is {value}.", lambda rng, pool: rng.choice(pool.surnames),
    ),
    _Relation(
        ("{who} owns a {value}.", "{who} bought a {value}.", "The {value} belongs to {who}."),
        ("What does {who} own?", "What belongs to {who}?"),
        "A {value}.",
        lambda rng, _: f"{rng.choice(_CONSONANT_COLOURS)} {rng.choice(words.THINGS)}",
    ),
)  # fmt: skip
_ASIDES = (
    "{}", "{}", "By the way: {}", "Note: {}", "(One thing to know: {})", "Please remember: {}",
)  # fmt: skip
_CLOSE_TOKENS = 4  # a distance is right to within so many
_FIRST = (
    "{}\n\n{}", "Read this text:\n\n{}\n\nQuestion: {}", "Here is a text.\n\n{}\n\n{}",
    "{}\n\nNow a question: {}", "Please read this carefully.\n\n{}\n\n{}",
)  # fmt: skip
_NOTED = (
    "I will remember it.", "Good to know.", "All right, noted.",
    "Thank you, I will keep it in mind.",
)  # fmt: skip
ABSENT = "The text does not say."
_QUOTES = (
    'Which sentence begins with "{}"?', 'Quote the sentence that begins with "{}".',
    'How does this sentence go on: "{}"', 'Write the whole sentence: "{} ..."',
)  # fmt: skip
_QUOTED_WORDS = 6  # a sentence has more, its opening no more
_MOST_ALIKE = 12  # facts of one relation, some of which have few values
_MOST_LISTED = 40
_FORM_SHARES = (4, 3, 1, 2)  # listed, planted, told, quoted: most questions a token first


def facts(rng: random.Random, pool: Pool, count: int, *, alike: bool | None = None) -> list[Fact]:
    """Facts with different subjects; if `alike`, and half of the time when None, all of one
    relation, which is harder."""
    if alike is None:
        alike = count <= _MOST_ALIKE and rng.random() < 0.5
    one = rng.choice(_RELATIONS) if alike else None
    made: list[Fact] = []
    values: set[str] = set()
    for who in rng.sample(pool.people, count):
        relation = one or rng.choice(_RELATIONS)
        value = relation.value(rng, pool)
        while value in values:
            value = relation.value(rng, pool)
        values.add(value)
        line, question = rng.choice(relation.statements), rng.choice(relation.questions)
        made.append(
            Fact(
                line.format(who=who, value=value),
                question.format(who=who),
                relation.answer.format(value=value),
                value,
            )
        )
    return made


def filler(rng: random.Random, tales: Sequence[str], characters: int) -> list[str]:
    """Paragraphs of real stories, about as many characters as asked for."""
    paragraphs: list[str] = []
    left = characters
    while left > 0:
        for paragraph in rng.choice(tales).split("\n"):
            if left > 0 and paragraph.strip():
                kept = paragraph.strip()
                if len(kept) > left:
                    kept = kept[: kept.find(". ", max(left, 0)) + 1] or kept
                paragraphs.append(kept)
                left -= len(kept)
    return paragraphs


def planted(rng: random.Random, pool: Pool, tales: Sequence[str], characters: int) -> Conversation:
    """A long text with facts in it, then questions about several of them."""
    planned = facts(rng, pool, rng.randint(2, 4 + min(12, characters // 700)))
    paragraphs = filler(rng, tales, characters)
    # One fact stands first of all, so that distances reach the whole length.
    places = [0, *(rng.randrange(len(paragraphs) + 1) for _ in planned[1:])]
    for fact, place in sorted(zip(planned, places, strict=True), key=lambda p: p[1], reverse=True):
        paragraphs.insert(place, rng.choice(_ASIDES).format(fact.statement))
    return _asked(rng, pool, planned, "\n\n".join(paragraphs))


def _asked(rng: random.Random, pool: Pool, planned: list[Fact], text: str) -> Conversation:
    asked = rng.sample(planned, rng.randint((len(planned) + 1) // 2, len(planned)))
    turns = [(fact.question, fact.answer) for fact in asked]
    if rng.random() < 0.15:
        turns.insert(rng.randrange(len(turns) + 1), (_about_nobody(rng, pool, text), ABSENT))
    messages: list[Message] = []
    for place, (question, answer) in enumerate(turns):
        said = question if place else rng.choice(_FIRST).format(text, question)
        messages += [user(said), assistant(answer)]
    return conversation(rng, messages, system=0.15)


def _about_nobody(rng: random.Random, pool: Pool, text: str) -> str:
    strangers = [name for name in rng.sample(pool.people, 20) if name not in text]
    question = rng.choice(rng.choice(_RELATIONS).questions)
    return question.format(who=rng.choice(strangers or ["Nobody"]))


def listed(rng: random.Random, pool: Pool, tales: Sequence[str], characters: int) -> Conversation:
    """Many facts with little between them, then a question about each, some of them twice."""
    planned = facts(rng, pool, rng.randint(3, max(4, min(_MOST_LISTED, characters // 150))))
    lines = [fact.statement for fact in planned]
    if rng.random() < 0.5:
        lines += filler(rng, tales, rng.randrange(max(1, characters // 3)))
        rng.shuffle(lines)
    text = rng.choice(("\n", " ", "\n\n")).join(lines)
    again = rng.sample(planned, len(planned) // 3)
    turns = rng.sample(planned, len(planned)) + again
    messages: list[Message] = []
    for place, fact in enumerate(turns):
        said = fact.question if place else rng.choice(_FIRST).format(text, fact.question)
        messages += [user(said), assistant(fact.answer)]
    return conversation(rng, messages, system=0.15)


def quoted(rng: random.Random, pool: Pool, tales: Sequence[str], characters: int) -> Conversation:
    """A long text, then some of its sentences, asked for by their first words."""
    del pool
    paragraphs = filler(rng, tales, characters)
    sentences = [s for p in paragraphs for s in re.split(r"(?<=[.!?]) ", p)
                 if _QUOTED_WORDS <= s.count(" ") <= 40]  # fmt: skip
    if not sentences:
        return quoted(rng, words.TRAINING, tales, characters + 200)
    messages: list[Message] = []
    for sentence in rng.sample(sentences, min(len(sentences), rng.randint(1, 4))):
        opening = " ".join(sentence.split(" ")[: rng.randint(3, _QUOTED_WORDS)])
        asked = rng.choice(_QUOTES).format(opening)
        if not messages:
            asked = rng.choice(_FIRST).format("\n\n".join(paragraphs), asked)
        messages += [user(asked), assistant(sentence)]
    return conversation(rng, messages, system=0.15)


def told(rng: random.Random, pool: Pool, tales: Sequence[str], characters: int) -> Conversation:
    """A chat in which the user says facts between stories, and asks for them at the end."""
    planned = facts(rng, pool, rng.randint(1, 4))
    messages: list[Message] = []
    for fact in planned:
        noted = rng.choice(_NOTED)
        messages += [user(rng.choice(_ASIDES).format(fact.statement)), assistant(noted)]
        if rng.random() < 0.7 or fact is planned[-1]:
            text = "\n\n".join(filler(rng, tales, characters // len(planned)))
            messages += [user(f"Here is a story.\n\n{text}"), assistant("Thank you for the story.")]
    for fact in rng.sample(planned, rng.randint(1, len(planned))):
        messages += [user(fact.question), assistant(fact.answer)]
    return conversation(rng, messages, system=0.15)


def recall(
    rng: random.Random, pool: Pool, tales: Sequence[str], longest_tokens: int
) -> Conversation:
    """Any form, 100 to `longest_tokens` tokens long, short ones as often as long ones."""
    shortest = 100.0
    tokens = shortest * (max(longest_tokens, 101) / shortest) ** rng.random()
    characters = int(tokens * 3.7)  # of a token of these stories
    form = rng.choices((listed, planted, told, quoted), _FORM_SHARES)[0]
    return form(rng, pool, tales, characters)


def at_distance(
    rng: random.Random,
    pool: Pool,
    tales: Sequence[str],
    distance_tokens: int,
    count_tokens: Callable[[str], int],
) -> tuple[Conversation, Fact]:
    """A chat that ends in a question whose fact lies `distance_tokens` back, to within a few
    tokens, and the fact. Two others of the same kind lie around it."""
    wanted, *others = facts(rng, pool, 3, alike=True)
    before = [*filler(rng, tales, 400), others[0].statement]
    after: list[str] = [others[1].statement]

    def short_of() -> int:
        rest = "\n\n".join(["", *after, wanted.question])
        return distance_tokens - count_tokens(rest)

    missing = short_of()
    while missing > 0 or (missing := short_of()) > _CLOSE_TOKENS:
        spaced = rng.choice(tales).replace("\n", " ").split(" ")
        length = count_tokens("\n\n" + " ".join(spaced))
        while length > missing and len(spaced) > 1:
            spaced = spaced[: max(1, len(spaced) - max(1, (length - missing) // 2))]
            length = count_tokens("\n\n" + " ".join(spaced))
        after.insert(rng.randrange(len(after) + 1), " ".join(spaced))
        missing -= length
    text = "\n\n".join([*before, wanted.statement, *after, wanted.question])
    return Conversation((user(text),), thinking=False), wanted
