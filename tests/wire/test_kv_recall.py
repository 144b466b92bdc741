"""Recall through the disk: the embedded model answers from restored rows as from computed ones."""

import itertools
import random
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from ds4.v1 import inference_pb2 as pb
from ds4.v1 import types_pb2
from ds4_daemon import embedded
from ds4_daemon.text.chat import Opening
from ds4_daemon.text.tokenizer import Tokenizer

from models.nano.data import words, world
from models.nano.evaluation import distance
from models.nano.evaluation.distance import Ask
from models.nano.evaluation.subject import Opened, read
from tests.wire.conftest import Daemon
from tests.wire.kv_service import Service
from tests.wire.test_kv_restore import DAEMON, SERVICE, wait_for_saves

# The model finds most of such facts so far back, not all, so texts are drawn until it found
# LEAST_RIGHT. Of a better model that constant alone asks more.
SEED = 6
LEAST_RIGHT = 6
TEXTS = range(2, 13)  # of four facts each, as many as it takes
TOKENS = 2048  # from the last of a fact to the last of its question
GUESSED = 1e-3  # a kind of fact that a guess hits more often shows nothing
ANSWER_TOKENS = 24
LIVE = ("--kv-min-saving-s", "0")


class Zeroed(Daemon):
    """A daemon that restores compressed rows as zeros."""

    def __init__(self, home: Path, *flags: str) -> None:
        super().__init__(home, None, *flags)
        self._command[2] = "tests.wire.kv_zeroed"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Opened(embedded.path()).tokenizer()


def texts(tokenizer: Tokenizer) -> Iterator[tuple[Ask, ...]]:
    """Questions for the facts of a text, in the order in which prompts share the most."""
    rng = random.Random(SEED)
    tales = [world.story(rng, words.TRAINING).text for _ in range(60)]
    while True:
        (text,) = distance.texts(rng, words.EVALUATION, tales, tokenizer, 1, {"2k": TOKENS})
        relation = distance.relation_of(text.asks[0].fact.question)
        if distance.chance(relation, words.EVALUATION) < GUESSED:
            yield text.asks


@pytest.fixture
def service(home: Path) -> Iterator[Service]:
    started = Service(home, *SERVICE)
    try:
        yield started.start()
    finally:
        started.kill()


def answers(daemon: Daemon, asks: Iterable[Ask]) -> list[tuple[list[int], pb.Usage]]:
    """Greedy answers to all, one after another."""
    found = []
    with daemon.inference() as stub:
        for ask in asks:
            request = pb.GenerateRequest(
                prompt=pb.Prompt(token_ids=types_pb2.TokenIds(ids=ask.ids)),
                sampling=types_pb2.Sampling(temperature=0, max_tokens=ANSWER_TOKENS),
                cache=pb.CachePolicy(no_save=isinstance(daemon, Zeroed)),
            )
            events = list(stub.Generate(request, timeout=60))
            ids = [i for event in events for i in event.delta.token_ids]
            found.append((ids, events[-1].finished.usage))
    return found


def right(tokenizer: Tokenizer, asks: list[Ask], said: list[list[int]]) -> set[int]:
    """Which answers have the fact's value and no other's of their text."""
    found = set()
    for i, (ask, ids) in enumerate(zip(asks, said, strict=True)):
        content = read(tokenizer, Opening.CONTENT, ids).content
        others = any(distance.has(content, value) for value in ask.others)
        if distance.has(content, ask.fact.value) and not others:
            found.add(i)
    return found


def whole(ask: Ask) -> int:
    """What can be restored of its prompt: complete blocks without the last token."""
    return (len(ask.ids) - 1) // 128 * 128


def restored(daemon: Daemon, asks: list[Ask]) -> list[list[int]]:
    """The answers, each from the service's rows up to the prompt's last boundary."""
    found = answers(daemon, asks)
    for ask, (_, usage) in zip(asks, found, strict=True):
        assert usage.cached_restored_tokens == whole(ask)
        assert usage.cached_live_tokens == 0
    return [ids for ids, _ in found]


def asked_live(daemon: Daemon, tokenizer: Tokenizer) -> tuple[list[Ask], list[list[int]]]:
    """Questions, enough of them answered right, and the answers: nothing comes from the service."""
    asks: list[Ask] = []
    said: list[list[int]] = []
    for count, text in enumerate(itertools.islice(texts(tokenizer), TEXTS.stop - 1), start=1):
        found = answers(daemon, text)
        assert not any(usage.cached_restored_tokens for _, usage in found)
        # Where prompts part before a boundary that was kept, the text is computed anew.
        assert any(usage.cached_live_tokens for _, usage in found[1:])
        asks += text
        said += [ids for ids, _ in found]
        if count >= TEXTS.start and len(right(tokenizer, asks, said)) >= LEAST_RIGHT:
            return asks, said
    pytest.fail(f"of {len(asks)} facts the model finds too few: nothing would be shown")


def test_a_fact_is_recalled_through_the_disk(
    home: Path, service: Service, tokenizer: Tokenizer
) -> None:
    """Live, restored, and after SIGKILL of either process the same answers; with zeros, none."""
    live, later = Daemon(home, None, *LIVE), Daemon(home, None, *DAEMON)
    zeroed = Zeroed(home, *DAEMON)
    try:
        asks, said = asked_live(live.start(), tokenizer)
        wait_for_saves(live)
        assert live.stop() == 0

        assert restored(later.start(), asks) == said
        time.sleep(1.0)  # what was put is on disk within a second: the service's promise
        service.kill()
        service.start()
        assert restored(later, asks) == said
        later.kill()
        assert restored(later.start(), asks) == said

        later.kill()
        lost = restored(zeroed.start(), asks)
        assert not right(tokenizer, asks, said) & right(tokenizer, asks, lost)
    finally:
        for daemon in (live, later, zeroed):
            daemon.kill()
