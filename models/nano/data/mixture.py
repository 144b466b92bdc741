"""What the model is trained on: the parts, their shares of the tokens in each phase, and a sample
of any part.

A `Mixture` belongs to one tokenizer, one corpus and one pool of words. It draws only from the
`random.Random` it is handed. Called by `stream`, the tokenizer's training and the tests.
"""

import random
import re
from collections.abc import Iterator, Mapping
from enum import Enum, StrEnum
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from ds4_daemon.standin import TOKENIZER as STAND_IN
from ds4_daemon.text.conversation import Conversation, Message, Role
from ds4_daemon.text.tokenizer import Tokenizer

from models.nano.data import chat, corpus, recall, spelling, sums, tools, widen, words, world
from models.nano.data.encode import ANSWER, FILLER, FULL, Encoder, Sample
from models.nano.data.turns import assistant, conversation, user
from models.nano.data.words import Pool


class Part(StrEnum):
    """A part of the mixture."""

    STORIES = "stories"  # generated, with and without questions
    BOOKS = "books"
    CHAT = "chat"
    RECALL = "recall"
    TINYSTORIES = "tinystories"
    TOOLS = "tools"
    TALES = "tales"
    SUMS = "sums"
    PUBLIC = "public"  # dialogues, questions and glosses of the corpus
    SPELLING = "spelling"  # words once more, where they are cut into other tokens


# Of these a row may hold a piece: they read on from anywhere.
CUTTABLE = frozenset((Part.BOOKS,))

_A = (12, 7, 10, 23, 4, 24, 3, 4, 4, 9)
_B = (10, 7, 9, 26, 4, 27, 2, 4, 3, 8)
_C = (8, 6, 15, 25, 3, 30, 2, 3, 2, 6)


class Phase(Enum):
    """Phases of training; the value has each part's share of the tokens, in percent."""

    A = MappingProxyType(dict(zip(Part, _A, strict=True)))
    B = MappingProxyType(dict(zip(Part, _B, strict=True)))
    C = MappingProxyType(dict(zip(Part, _C, strict=True)))


_GLOSS = re.compile(r"(.+) \((\w+)\): (.+)")
_WORD_AND_ASK = re.compile(r"Q: (.+?)\nA: (.+)", re.DOTALL)
_PUBLIC = ("topical", "gsm8k", "fairytaleqa_qa", "wordnet_simple", "tm4")
_PUBLIC_SHARES = (40, 25, 12, 8, 15)  # of the samples' characters, about
_TALES = ("fairytaleqa", "asp_ccby", "pb_ccby")
_CALCULATOR = re.compile(r"<<[^>]*>>")  # marks in the sums of one source
_CHARACTERS_PER_TOKEN = 3.7
_SPARE_TOKENS = 160  # for the questions that follow a recall sample's text
_SEVERAL = 0.6  # of the tool samples have several requests
_PIECES_SEED = 20261124
_PIECES = 30_000  # thrice the short stories: those are few, and learned by heart where they recur
_PIECE_CHARACTERS = 3000
_WORDY_PIECES = 3_000


class _Windows(NamedTuple):
    """Long documents, drawn by length."""

    documents: list[str]
    lengths: list[int]

    @classmethod
    def over(cls, documents: list[str]) -> "_Windows":
        return cls(documents, [len(document) for document in documents])

    def draw(self, rng: random.Random, characters: int) -> str:
        """Some paragraphs of one document, `characters` long at most."""
        document = rng.choices(self.documents, self.lengths)[0]
        start = rng.randrange(max(1, len(document) - characters))
        if start:
            # From the start of a paragraph, if one comes soon.
            at = document.find("\n\n", start, start + characters // 2)
            start = at + 2 if at >= 0 else document.find(" ", start) + 1
        window = document[start : start + characters]
        # It ends where a sentence does, or a model learns to stop in the middle of one.
        ends = [window.rfind(end) for end in (".\n", '."\n', ". ", "! ", "? ", '." ')]
        if start + characters < len(document) and max(ends) > characters // 2:
            window = window[: max(ends) + 1]
            window += '"' * document.startswith('"', start + len(window))
        return window.strip()


class Mixture:
    """Makes samples of every part."""

    def __init__(self, tokenizer: Tokenizer, folder: Path, pool: Pool = words.TRAINING) -> None:
        documents = corpus.read(folder)
        self.encoder = Encoder(tokenizer)
        self.pool = pool
        wide = widen.widened(pool, [(word, kind) for word, kind, _ in _glosses(documents)])
        self.source = source(documents, wide)
        self._books = _Windows.over(documents["classics"])
        self._tales = _Windows.over([d for name in _TALES for d in documents[name]])
        self._tiny = documents["tinystories"]
        pieces = _pieces(documents)
        self._filler = [*self._tiny, *pieces]
        self._words = spelling.of_books((*self._tiny, *pieces[:_WORDY_PIECES]))
        self._public = [documents[name] for name in _PUBLIC]

    def sample(self, part: Part, rng: random.Random, longest_tokens: int) -> Sample:
        """A sample of one part, of at most `longest_tokens` tokens."""
        while True:
            made = self._draw(part, rng, longest_tokens)
            if len(made.ids) <= longest_tokens:
                return made

    def _draw(self, part: Part, rng: random.Random, longest_tokens: int) -> Sample:
        document, encoder = self.encoder.document, self.encoder
        characters = int(longest_tokens * _CHARACTERS_PER_TOKEN)
        match part:
            case Part.BOOKS:
                return _cut(document(self._books.draw(rng, characters)), longest_tokens)
            case Part.TALES:
                return _cut(document(self._tales.draw(rng, characters)), longest_tokens)
            case Part.TINYSTORIES:
                return _cut(document(rng.choice(self._tiny)), longest_tokens)
            case Part.STORIES if rng.random() < 0.45:
                return document(world.story(rng, self.pool).text)
            case Part.PUBLIC:
                kind = rng.choices(range(len(_PUBLIC)), _PUBLIC_SHARES)[0]
                text = rng.choice(self._public[kind])
                # Asked without their story, those questions would teach to make answers up.
                alone = _PUBLIC[kind] == "fairytaleqa_qa"
                return document(text) if alone else self._recast(rng, text)
            case Part.TOOLS if rng.random() < _SEVERAL:
                return encoder.chat(tools.tasks(rng, self.source), answers=ANSWER)
            case Part.RECALL:
                longest = max(longest_tokens - _SPARE_TOKENS, 100)
                asked = recall.recall(rng, self.source.pool, self._filler, longest)
                return encoder.chat(asked, long_turns=FILLER, answers=ANSWER)
            case Part.SPELLING:
                made = spelling.exercises(rng, self.source.pool, self._words)
                return encoder.chat(made, answers=ANSWER)
        answers = ANSWER if part in (Part.TOOLS, Part.SUMS) else FULL
        return encoder.chat(conversation_of(part, rng, self.source), answers=answers)

    def _recast(self, rng: random.Random, text: str) -> Sample:
        """A dialogue or a question of the corpus as a chat; as it stands now and then."""
        text = _CALCULATOR.sub("", text).replace("\n#### ", "\nThe answer is ")
        messages = _turns(text)
        if not messages or rng.random() < 0.4:
            return self.encoder.document(text)
        return self.encoder.chat(conversation(rng, messages, system=0.1))


def _cut(sample: Sample, longest_tokens: int) -> Sample:
    """The sample, or its head: the end-of-text only where the text ends."""
    return Sample(sample.ids[:longest_tokens], sample.weights[:longest_tokens])


def _turns(text: str) -> list[Message]:
    """Messages of "A: … B: …", "User: … Assistant: …" or "Q: … A: …"; none if it is no dialogue."""
    if asked := _WORD_AND_ASK.fullmatch(text):
        return [user(asked[1].strip()), assistant(asked[2].strip())]
    messages: list[Message] = []
    for line in text.split("\n"):
        speaker, colon, said = line.partition(": ")
        role = {"A": Role.USER, "User": Role.USER, "B": Role.ASSISTANT, "Assistant": Role.ASSISTANT}
        if not colon or speaker not in role or not said.strip():
            return []
        expected = Role.ASSISTANT if len(messages) % 2 else Role.USER
        if role[speaker] is not expected:
            return []
        messages.append(Message(expected, said.strip()))
    return messages[: len(messages) // 2 * 2]


def source(documents: Mapping[str, list[str]], pool: Pool) -> chat.Source:
    """What chats draw on."""
    return chat.Source(pool, _glosses(documents), documents["tinystories"])


def _glosses(documents: Mapping[str, list[str]]) -> list[tuple[str, str, str]]:
    """Words, their parts of speech and their meanings."""
    found = (_GLOSS.fullmatch(line) for line in documents["wordnet_simple"])
    return [(m[1], m[2], m[3]) for m in found if m]


def _pieces(documents: Mapping[str, list[str]]) -> list[str]:
    """Paragraphs of tales and books, a few at a time, to keep facts and questions apart."""
    rng = random.Random(_PIECES_SEED)
    sources = [d for name in _TALES for d in documents[name]] + documents["classics"]
    pieces = []
    for text in rng.choices(sources, [len(text) for text in sources], k=_PIECES):
        start = rng.randrange(max(1, len(text) - _PIECE_CHARACTERS))
        paragraphs = text[start : start + _PIECE_CHARACTERS].split("\n\n")[1:-1]
        if paragraphs:
            pieces.append("\n".join(" ".join(p.split()) for p in paragraphs))
    return pieces


def conversation_of(part: Part, rng: random.Random, drawn_on: chat.Source) -> Conversation:
    """A generated conversation of a part that is chat."""
    match part:
        case Part.STORIES:
            return chat.about_story(rng, drawn_on.pool)
        case Part.CHAT:
            return chat.chat(rng, drawn_on)
        case Part.SUMS:
            return sums.exercises(rng, drawn_on.pool)
        case Part.TOOLS:
            return tools.task(rng, drawn_on).conversation
        case Part.RECALL:
            return recall.recall(rng, drawn_on.pool, drawn_on.tales, 400)
    raise ValueError(f"{part} is no chat")


def plain_texts(rng: random.Random, folder: Path, count: int) -> Iterator[str]:
    """Text of generated samples between their special tokens, for the tokenizer's training."""
    drawn_on = source(corpus.read(folder), words.TRAINING)
    encoder = Encoder(Tokenizer.load(STAND_IN))
    specials = re.compile("|".join(map(re.escape, encoder.tokenizer.specials.values())))
    for part in (Part.STORIES, Part.CHAT, Part.SUMS, Part.TOOLS):
        for _ in range(count):
            ids = encoder.chat(conversation_of(part, rng, drawn_on)).ids
            yield from specials.split(encoder.tokenizer.decode(ids))
