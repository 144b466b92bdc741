"""Text as tokens come: never half a character, never a special token, never slower with length."""

import random

import pytest
from ds4_daemon.text.stream import MARKS, TextStream
from ds4_daemon.text.tokenizer import DSML, END_THINK, EOS, THINK, USER, Tokenizer

from tests.text.test_tokenizer import AWKWARD


def streamed(stream: TextStream, ids: list[int]) -> str:
    return "".join([*(stream.push(token_id) for token_id in ids), stream.finish()])


@pytest.mark.parametrize("seed", range(20))
def test_random_tokens_stream_to_what_they_decode_to(seed: int, tokenizer: Tokenizer) -> None:
    """Any sequence of ordinary tokens, broken UTF-8 included, streams to its full decoding."""
    rng = random.Random(seed)
    fragments = [i for i in range(3, 128_000) if len(tokenizer.piece(i)) < 3][:256]
    ids = [
        rng.choice(fragments) if rng.random() < 0.5 else rng.randrange(3, 128_000)
        for _ in range(500)
    ]
    assert streamed(TextStream(tokenizer), ids) == tokenizer.decode(ids)


@pytest.mark.parametrize("text", AWKWARD)
def test_text_streams_to_itself_in_whole_characters(text: str, tokenizer: Tokenizer) -> None:
    """Each piece of a stream is a part of the text: nothing is replaced and nothing comes late."""
    stream = TextStream(tokenizer)
    shown, decoded = "", b""
    for token_id in tokenizer.encode(text):
        shown += stream.push(token_id)
        decoded += tokenizer.piece(token_id)
        assert shown == decoded.decode("utf-8", "ignore")
    assert stream.finish() == ""
    assert shown == text


def test_character_of_several_tokens_waits_for_the_last(tokenizer: Tokenizer) -> None:
    """A character that takes several tokens appears with the last of them."""
    ids = tokenizer.encode("🏴")
    assert len(ids) > 1
    stream = TextStream(tokenizer)
    assert [stream.push(token_id) for token_id in ids] == [""] * (len(ids) - 1) + ["🏴"]


def test_incomplete_character_is_replaced_only_at_the_end(tokenizer: Tokenizer) -> None:
    """An unfinished character shows as U+FFFD when the stream ends, and not before."""
    *ids, _ = tokenizer.encode("🏴")
    stream = TextStream(tokenizer)
    assert "".join(stream.push(token_id) for token_id in ids) == ""
    assert stream.finish() == "\ufffd"
    assert stream.finish() == ""


def test_special_tokens_are_hidden_unless_asked_for(tokenizer: Tokenizer) -> None:
    """A special token brings no text, its spelling when asked, and ends what was incomplete."""
    ids = [*tokenizer.encode("a"), tokenizer.special_id(USER), *tokenizer.encode("b")]
    ids += [*tokenizer.encode("🏴")[:-1], tokenizer.special_id(EOS)]
    assert streamed(TextStream(tokenizer), ids) == "ab\ufffd"
    assert streamed(TextStream(tokenizer, show_specials=True), ids) == f"a{USER}b\ufffd{EOS}"


def test_marks_stand_for_specials_and_for_nothing_else(tokenizer: Tokenizer) -> None:
    """With marks on, the special token gives its mark, and no text can pretend to be one."""
    ids = [tokenizer.special_id(spelling) for spelling in (THINK, END_THINK, DSML)]
    plain = tokenizer.encode(THINK + MARKS[THINK])
    marked = TextStream(tokenizer, marks=True)
    marks = MARKS[THINK] + MARKS[END_THINK] + MARKS[DSML]
    assert streamed(marked, ids + plain) == f"{marks}{THINK}\ufffd"


def test_id_beyond_the_vocabulary_brings_no_text(tokenizer: Tokenizer) -> None:
    """A padded vocabulary has ids without a token: they stream as nothing."""
    assert TextStream(tokenizer).push(tokenizer.vocab_size) == ""
