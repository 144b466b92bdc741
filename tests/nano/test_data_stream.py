"""The embedded model's packed stream: nothing lost, nothing cut, nothing leaked, and repeatable."""

import lzma
import random
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from ds4_daemon.text.tokenizer import Tokenizer

from models.nano.data import corpus
from models.nano.data.encode import Sample
from models.nano.data.mixture import CUTTABLE, Mixture, Part, Phase
from models.nano.data.stream import TOKENIZER, Packer, batches, batches_of_one

SECRET = "xylophonist"  # only in the held-out file


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small corpus of the same form."""
    made = tmp_path_factory.mktemp("corpus")
    rng = random.Random("corpus")
    names = [
        "the",
        "a",
        "fox",
        "dog",
        "went",
        "sat",
        "ran",
        "big",
        "small",
        "house",
        "river",
        "and",
        "then",
        "it",
        "was",
        "cold",
        "warm",
    ]

    def prose(words: int) -> str:
        return ". ".join(" ".join(rng.choices(names, k=9)).capitalize() for _ in range(words // 9))

    groups = {
        "tinystories": [prose(90) for _ in range(20)],
        "fairytaleqa": [prose(3000) for _ in range(3)],
        "fairytaleqa_qa": ["Q: Who ran?\nA: the dog"],
        "asp_ccby": ["# Fox\n\n" + prose(60)],
        "pb_ccby": ["# Dog\n\n" + prose(60)],
        "tm4": ["User: Tea, please.\nAssistant: One tea."],
        "topical": ["A: Do you like dogs?\nB: I do.\nA: Why?\nB: They run."],
        "gsm8k": ["Q: What is 2 and 2?\nA: It is <<2+2=4>>4.\n#### 4"],
        "wordnet_simple": ["well (noun): a deep hole with water"],
    }
    for name, packed in zip(corpus.FILES, (groups, {"classics": [prose(9000)]}), strict=True):
        text = "".join(f"\x1d{g}\n" + "\n\x1e\n".join(docs) + "\n" for g, docs in packed.items())
        (made / name).write_bytes(lzma.compress(text.encode(), preset=0))
    (made / corpus.HELD_OUT).write_text(f'{{"src": "tinystories", "text": "{SECRET} {SECRET}"}}\n')
    return made


@pytest.fixture(scope="module")
def mixture(folder: Path) -> Mixture:
    return Mixture(Tokenizer.load(TOKENIZER), folder)


class Recorded(Mixture):
    """A mixture that keeps what it gave."""

    def __init__(self, mixture: Mixture) -> None:
        self._inner = mixture
        self.given: list[tuple[Part, Sample]] = []

    def sample(self, part: Part, rng: random.Random, longest_tokens: int) -> Sample:
        made = self._inner.sample(part, rng, longest_tokens)
        self.given.append((part, made))
        return made


def test_corpus_comes_apart_as_it_was_packed(folder: Path) -> None:
    """Groups and documents are those that were packed."""
    read = corpus.read(folder)
    assert len(read["tinystories"]) == 20 and len(read["classics"]) == 1
    assert read["topical"] == ["A: Do you like dogs?\nB: I do.\nA: Why?\nB: They run."]
    assert list(corpus.held_out(folder)) == [("tinystories", f"{SECRET} {SECRET}")]


def test_rows_are_whole_samples_and_pieces_of_books(mixture: Mixture) -> None:
    """Taken apart again, rows give back every sample but those still waiting, uncut and once."""
    recorded = Recorded(mixture)
    packer = Packer(recorded, Phase.A, 1025, random.Random(1))
    rows = [packer.row() for _ in range(40)]
    assert {len(row.ids) for row in rows} == {1025} == {len(row.weights) for row in rows}
    book = [i for part, made in recorded.given if part in CUTTABLE for i in made.ids]
    whole = Counter(tuple(made.ids) for part, made in recorded.given if part not in CUTTABLE)
    longest = max(map(len, whole))
    found: Counter[tuple[int, ...]] = Counter(tuple(made.ids) for made in packer.waiting)
    at_book = 0
    for row in rows:
        at = 0
        while at < len(row.ids):
            lengths = range(longest, 0, -1)
            size = next((n for n in lengths if tuple(row.ids[at : at + n]) in whole), 0)
            if size:
                found[tuple(row.ids[at : at + size])] += 1
            else:  # the next piece of the books
                assert row.ids[at] == book[at_book]
                at_book, size = at_book + 1, 1
            at += size
    assert found == whole


def test_shares_are_kept(mixture: Mixture) -> None:
    """After some tokens, each part has its share of them, but for one sample."""
    packer = Packer(mixture, Phase.C, 1025, random.Random(2))
    for _ in range(120):
        packer.row()
    total = sum(packer.tokens.values())
    for part, share in Phase.C.value.items():
        assert abs(packer.tokens[part] - share * total / 100) < 1.5 * 1025 + 0.02 * total


def test_stream_repeats(folder: Path) -> None:
    """The same seed gives the same batches, another seed others."""

    def first(seed: str) -> list[np.ndarray]:
        return [ids for ids, _ in islice(batches_of_one(folder, Phase.B, 512, 2, seed), 3)]

    assert all(np.array_equal(a, b) for a, b in zip(first("a"), first("a"), strict=True))
    assert not np.array_equal(first("a")[0], first("b")[0])


def test_workers_take_turns(folder: Path) -> None:
    """Two workers' batches come in turn, each as its own stream gives them."""
    stream = batches(folder, Phase.A, 768, 2, seed=7, workers=2)
    taken = [ids for ids, _ in islice(stream, 4)]
    stream.close()
    own: list[Iterator[tuple[np.ndarray, np.ndarray]]] = [
        batches_of_one(folder, Phase.A, 768, 2, f"7/A/768/{place}") for place in range(2)
    ]
    for place, ids in enumerate(taken):
        assert np.array_equal(ids, next(own[place % 2])[0])
        assert ids.shape == (2, 769) and ids.dtype == np.uint16


def test_held_out_text_is_never_drawn(mixture: Mixture) -> None:
    """No sample of any part holds a word that only the held-out file has."""
    rng = random.Random("held out")
    decode = mixture.encoder.tokenizer.decode
    for part in Part:
        for _ in range(40):
            assert SECRET not in decode(mixture.sample(part, rng, 600).ids)


@pytest.mark.parametrize("longest_tokens", [256, 1025])
def test_no_sample_is_too_long(mixture: Mixture, longest_tokens: int) -> None:
    """Every part keeps to the length of a row."""
    rng = random.Random(longest_tokens)
    for part in set(Part) - ({Part.TOOLS} if longest_tokens < 300 else set()):
        for _ in range(20):
            made = mixture.sample(part, rng, longest_tokens)
            assert len(made.ids) == len(made.weights) <= longest_tokens
            assert made.ids[0] == mixture.encoder.tokenizer.bos_id


def test_books_keep_their_share(folder: Path) -> None:
    """What gaps do not take of the books fills rows of its own: no backlog grows."""
    mixture = Mixture(Tokenizer.load(TOKENIZER), folder)
    packer = Packer(mixture, Phase.B, 513, random.Random("books"))
    for _ in range(300):
        packer.row()
        assert len(packer._book.ids) < 16_384
