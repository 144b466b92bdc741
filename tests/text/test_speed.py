"""Costs: a long prompt encodes at once, and a token costs the same however long the answer is.

Measured in processor time, which other programs on the machine do not change; limits are several
times what a laptop needs, so that only a change of order fails.
"""

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from ds4_daemon.text.chat import Opening, render
from ds4_daemon.text.conversation import Conversation, Message, Role, Tool, ToolCall
from ds4_daemon.text.parse import OutputParser
from ds4_daemon.text.stream import TextStream
from ds4_daemon.text.tokenizer import DSML, END_THINK, Tokenizer

PROSE = Path(__file__).with_name("test_chat.py").read_text("utf-8")
MEGABYTE = 1_000_000


def cpu_s(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


@pytest.mark.parametrize(
    "unit",
    [
        pytest.param(PROSE, id="prose"),
        "word ",
        "a",
        " ",
        "\n",
        " \n",
        "1",
        "!",
        "aab",
        "汉字",
        "🙂",
        "\x00",
        "<think>",
    ],
    ids=ascii,
)
def test_a_megabyte_is_encoded_at_once(unit: str, tokenizer: Tokenizer) -> None:
    """A megabyte of any text, the monotonous included, takes no seconds to encode."""
    text = (unit * (MEGABYTE // len(unit.encode()) + 1))[:MEGABYTE]
    assert cpu_s(lambda: tokenizer.encode(text)) < 4


def test_a_chat_of_many_turns_is_rendered_at_once(tokenizer: Tokenizer) -> None:
    """A megabyte in thousands of turns, tool calls among them, takes no seconds to render."""
    calling = Message(Role.ASSISTANT, "好", "r", (ToolCall("1", "f", '{"x": "y"}'),))
    turn = (Message(Role.USER, "word " * 100), calling, Message(Role.TOOL, "🙂", tool_call_id="1"))
    conversation = Conversation(turn * 2_000, tools=(Tool("f"),))
    assert cpu_s(lambda: render(conversation, tokenizer)) < 4


@pytest.mark.parametrize("part", ["plain", "reasoning", "content", "tool call", "nonsense"])
def test_a_token_costs_the_same_in_a_long_answer(part: str, tokenizer: Tokenizer) -> None:
    """Streaming and parsing 100,000 tokens is linear, and far quicker than any model."""
    tag, end = tokenizer.special_id(DSML), tokenizer.special_id(END_THINK)

    def spelled(text: str) -> list[int]:
        """Ids of text in which D stands for the special token of tool calls."""
        first, *rest = text.split("D")
        return sum(([tag, *tokenizer.encode(piece)] for piece in rest), tokenizer.encode(first))

    opening, start, unit = {
        "plain": (Opening.PLAIN, [], tokenizer.encode(PROSE)),
        "reasoning": (Opening.REASONING, [], tokenizer.encode(PROSE)),
        "content": (Opening.REASONING, [end], tokenizer.encode(PROSE)),
        "tool call": (
            Opening.CONTENT,
            spelled('<Dtool_calls>\n<Dinvoke name="f">\n<Dparameter name="x" string="true">'),
            tokenizer.encode(PROSE),
        ),
        "nonsense": (Opening.CONTENT, spelled("<D"), spelled('invoke name="f">\n<D</D\n')),
    }[part]
    ids = (unit * (100_000 // len(unit) + 1))[:100_000]
    stream = TextStream(tokenizer, marks=True)
    parser = OutputParser(opening, ["never found", "\n\n\nnor this"])
    for token_id in start:
        parser.push(stream.push(token_id))

    def run(part_ids: list[int]) -> Callable[[], None]:
        def work() -> None:
            for token_id in part_ids:
                parser.push(stream.push(token_id))

        return work

    first = cpu_s(run(ids[:25_000]))
    run(ids[25_000:75_000])()
    last = cpu_s(run(ids[75_000:]))
    assert last < 4 * first
    assert last / 25_000 < 100e-6
    assert cpu_s(parser.finish) < 1
