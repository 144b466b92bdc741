"""Rendering: the prompt is deepseek-recipe's, its ids the published tokenizer's, forging fails."""

import re
from collections import Counter

import deepseek_recipe as recipe
import pytest
import tokenizers
from ds4_daemon.errors import RequestError
from ds4_daemon.text.chat import JULY, Opening, complete, render
from ds4_daemon.text.conversation import (
    Conversation,
    Effort,
    Message,
    ResponseForm,
    Role,
    Tool,
    ToolCall,
    ToolChoice,
)
from ds4_daemon.text.tokenizer import Tokenizer

from tests.text import conversations
from tests.text.conftest import PUBLISHED
from tests.text.conversations import CASES, FORGED, Case, ours

# One private character for each special token of the template, which no case contains.
SENTINELS = {
    "bos": "\ue000",
    "eos": "\ue001",
    "user": "\ue002",
    "assistant": "\ue003",
    "thinking_start": "\ue004",
    "thinking_end": "\ue005",
    "dsml": "\ue006",
    "latest_reminder": "\ue007",
}
SPELLINGS = {
    "\ue000": "<｜begin▁of▁sentence｜>",
    "\ue001": "<｜end▁of▁sentence｜>",
    "\ue002": "<｜User｜>",
    "\ue003": "<｜Assistant｜>",
    "\ue004": "<think>",
    "\ue005": "</think>",
    "\ue006": "｜DSML｜",
    "\ue007": "<｜latest_reminder｜>",
}
A = "Reasoning Effort: Absolute maximum"
E = "<｜end▁of▁sentence｜>"
B = "<｜begin▁of▁sentence｜>"


def recipe_conversation(case: Case) -> recipe.Conversation:
    """The case as deepseek-recipe's own protocol code reads it."""
    body = {"model": "DeepSeek-V4-Pro", **case.request}
    body["messages"] = [
        {**message, "role": "user" if message["role"] == "developer" else message["role"]}
        for message in body["messages"]
    ]
    if body["thinking"]["type"] == "enabled":
        body["reasoning_effort"] = case.recipe_effort
    return recipe.ChatCompletionRequest(body).convert(recipe.ConversionOptions()).conversation


def conversation(*messages: Message, tools: tuple[Tool, ...] = ()) -> Conversation:
    return Conversation(messages, tools=tools, thinking=False)


USER = Message(Role.USER, "Q")


def test_there_are_enough_cases() -> None:
    """At least thirty conversations are compared, each named once."""
    assert len({case.name for case in CASES}) == len(CASES) >= 30


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_prompt_is_that_of_deepseek_recipe(case: Case, tokenizer: Tokenizer) -> None:
    """Every conversation renders to the text that deepseek-recipe gives for the same request."""
    expected = recipe.DeepseekV4Encoding().render_conversation(recipe_conversation(case))
    assert render(ours(case), tokenizer).text == expected.prompt


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_ids_are_those_of_the_published_tokenizer(
    case: Case,
    tokenizer: Tokenizer,
    published: tokenizers.Tokenizer,
    published_plain: tokenizers.Tokenizer,
) -> None:
    """The ids are the published tokenizer's: specials by name, and the rest without them."""
    template = recipe.DeepseekV4Encoding().with_special_tokens(recipe.SpecialTokens(**SENTINELS))
    prompt = template.render_conversation(recipe_conversation(case)).prompt
    expected: list[int | None] = []
    for piece in re.split("([\ue000-\ue007])", prompt):
        if piece in SPELLINGS:
            expected.append(published.token_to_id(SPELLINGS[piece]))
        else:
            expected += published_plain.encode(piece, add_special_tokens=False).ids
    assert render(ours(case), tokenizer).ids == expected


def test_ids_are_those_of_deepseek_recipe(tokenizer: Tokenizer) -> None:
    """deepseek-recipe with the published tokenizer attached encodes every conversation alike."""
    attached = recipe.Tokenizer.from_file(str(PUBLISHED))
    encoding = recipe.DeepseekV4Encoding().with_tokenizer(attached)
    for case in CASES:
        assert render(ours(case), tokenizer).ids == encoding.encode(recipe_conversation(case))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("system, chat", f"{B}You are helpful.<｜User｜>Hi<｜Assistant｜></think>"),
        (
            "history drops reasoning",
            f"{B}<｜User｜>Hi<｜Assistant｜></think>Hello{E}<｜User｜>2+2?<｜Assistant｜><think>",
        ),
        (
            "merged user messages",
            f"{B}<｜User｜>a\n\nb<｜Assistant｜></think>c{E}<｜User｜>d<｜Assistant｜></think>",
        ),
    ],
)
def test_published_examples(name: str, text: str, tokenizer: Tokenizer) -> None:
    """The examples of DeepSeek's encoder come out letter by letter."""
    case = next(case for case in CASES if case.name == name)
    assert render(ours(case), tokenizer).text == text


def test_published_example_of_the_highest_effort(tokenizer: Tokenizer) -> None:
    """The highest effort puts its words between begin-of-text and the system text."""
    case = next(case for case in CASES if case.name == "effort max")
    text = render(ours(case), tokenizer).text
    assert text.startswith(B + A)
    assert text.endswith("\n\nS<｜User｜>Q<｜Assistant｜><think>")


def test_published_example_of_tools(tokenizer: Tokenizer) -> None:
    """Tools follow the system text, and results stand in the order of the calls."""
    case = next(case for case in CASES if case.name.startswith("tool results out of order"))
    text = render(ours(case), tokenizer).text
    head, rest = text.split("<｜User｜>w?")
    assert head.startswith(f"{B}S\n\n## Tools\n\n")
    assert head.endswith("invoke tool calls.\n")
    assert rest == (
        "<｜Assistant｜><think>call</think>\n\n<｜DSML｜tool_calls>\n"
        '<｜DSML｜invoke name="get_weather">\n'
        '<｜DSML｜parameter name="location" string="true">Rome</｜DSML｜parameter>\n'
        '<｜DSML｜parameter name="days" string="false">3</｜DSML｜parameter>\n'
        "</｜DSML｜invoke>\n"
        '<｜DSML｜invoke name="get_weather">\n'
        '<｜DSML｜parameter name="location" string="true">Oslo</｜DSML｜parameter>\n'
        f"</｜DSML｜invoke>\n</｜DSML｜tool_calls>{E}"
        "<｜User｜><tool_result>sunny</tool_result>\n\n<tool_result>cold</tool_result>"
        "\n\nso?<｜Assistant｜><think>"
    )


@pytest.mark.parametrize(
    ("effort", "word"),
    [("default", "high"), ("low", "low"), ("high", "high"), ("xhigh", "xhigh"), ("max", "max")],
)
def test_later_checkpoint_has_its_own_efforts(effort: str, word: str, tokenizer: Tokenizer) -> None:
    """With the ladder of the 0731 checkpoint an effort is the one deepseek-recipe knows."""
    case = Case("", conversations.think(conversations.user("Q")), Effort(effort), word)
    expected = recipe.DeepseekV4Encoding().render_conversation(recipe_conversation(case))
    assert render(ours(case), tokenizer, ladder=JULY).text == expected.prompt


@pytest.mark.parametrize(
    "case", [case for case in CASES if FORGED in str(case.request)], ids=lambda case: case.name
)
def test_no_field_can_forge_a_special_token(case: Case, tokenizer: Tokenizer) -> None:
    """Spelling special tokens in any field gives the same specials as harmless text there."""

    def tame(value: object) -> object:
        if isinstance(value, dict):
            return {tame(key): tame(entry) for key, entry in value.items()}
        if isinstance(value, list):
            return [tame(entry) for entry in value]
        return value.replace(FORGED, "x") if isinstance(value, str) else value

    def specials(of: Case) -> Counter[int]:
        ids = render(ours(of), tokenizer).ids
        return Counter(token_id for token_id in ids if token_id in tokenizer.specials)

    request = tame(case.request)
    assert isinstance(request, dict)
    assert FORGED not in str(request)
    assert specials(case) == specials(case._replace(request=request))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_ids_decode_to_the_prompt(case: Case, tokenizer: Tokenizer) -> None:
    """The ids of a prompt decode to its text."""
    rendered = render(ours(case), tokenizer)
    assert tokenizer.decode(rendered.ids) == rendered.text


@pytest.mark.parametrize(
    ("name", "opening"),
    [
        ("one user message, chat", Opening.CONTENT),
        ("one user message, thinking", Opening.REASONING),
        ("tool call required", Opening.TOOL_CALLS),
        ("content continued", Opening.CONTENT_CONTINUED),
        ("reasoning continued", Opening.REASONING_CONTINUED),
        ("answer after reasoning continued", Opening.CONTENT_CONTINUED),
        ("forged prefix", Opening.CONTENT_CONTINUED),
    ],
)
def test_opening_tells_what_comes_next(name: str, opening: Opening, tokenizer: Tokenizer) -> None:
    """A rendered prompt says whether reasoning, content or a tool call is written next."""
    case = next(case for case in CASES if case.name == name)
    assert render(ours(case), tokenizer).opening is opening


def test_completion_is_begin_of_text_and_text(tokenizer: Tokenizer) -> None:
    """A plain completion is begin-of-text and the text, which cannot forge a turn."""
    rendered = complete(FORGED, tokenizer)
    assert rendered.ids == [tokenizer.bos_id, *tokenizer.encode(FORGED)]
    assert rendered.text == B + FORGED
    assert rendered.opening is Opening.PLAIN
    assert not set(rendered.ids[1:]) & set(tokenizer.specials)


TOOL = Tool("f")
CALLING = Message(Role.ASSISTANT, tool_calls=(ToolCall("1", "f"),))
RESULT = Message(Role.TOOL, "r", tool_call_id="1")


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        (conversation(), "EMPTY_CONVERSATION"),
        (conversation(USER, Message(Role.ASSISTANT, "x")), "NOTHING_TO_ANSWER"),
        (conversation(USER, RESULT), "UNKNOWN_TOOL_CALL_ID"),
        (conversation(CALLING, Message(Role.TOOL, "r", tool_call_id="2")), "UNKNOWN_TOOL_CALL_ID"),
        (conversation(CALLING, Message(Role.TOOL, "r")), "UNKNOWN_TOOL_CALL_ID"),
        (conversation(CALLING, RESULT, RESULT), "DUPLICATE_TOOL_RESULT"),
        (
            conversation(Message(Role.ASSISTANT, tool_calls=(ToolCall("", "f"),)), USER),
            "BAD_TOOL_CALL_ID",
        ),
        (
            conversation(Message(Role.ASSISTANT, tool_calls=CALLING.tool_calls * 2), USER),
            "BAD_TOOL_CALL_ID",
        ),
        (
            conversation(Message(Role.ASSISTANT, tool_calls=(ToolCall("1", "f", "{"),)), USER),
            "BAD_TOOL_ARGUMENTS",
        ),
        (
            conversation(Message(Role.ASSISTANT, tool_calls=(ToolCall("1", "f", "[1]"),)), USER),
            "BAD_TOOL_ARGUMENTS",
        ),
        (
            conversation(
                Message(Role.ASSISTANT, tool_calls=(ToolCall("1", "f", '{"a": NaN}'),)), USER
            ),
            "BAD_TOOL_ARGUMENTS",
        ),
        (conversation(USER, tools=(Tool("f", "", "{"),)), "BAD_TOOL_SCHEMA"),
        (conversation(USER, tools=(Tool("f", "", "[" * 100_000),)), "BAD_TOOL_SCHEMA"),
        (conversation(USER, tools=(Tool("f", "", '"s"'),)), "BAD_TOOL_SCHEMA"),
        (conversation(USER, tools=(Tool('f"x'),)), "BAD_TOOL_NAME"),
        (conversation(USER, tools=(Tool(""),)), "BAD_TOOL_NAME"),
        (
            conversation(Message(Role.ASSISTANT, tool_calls=(ToolCall("1", "f\n"),)), USER),
            "BAD_TOOL_NAME",
        ),
        (conversation(USER, tools=(TOOL, TOOL)), "DUPLICATE_TOOL"),
        (conversation(Message(Role.USER, "Q", reasoning="r")), "MISPLACED_FIELD"),
        (conversation(Message(Role.USER, "Q", tool_call_id="1")), "MISPLACED_FIELD"),
        (conversation(Message(Role.USER, "Q", prefix=True)), "MISPLACED_FIELD"),
        (conversation(Message(Role.ASSISTANT, "Q", prefix=True), USER), "MISPLACED_FIELD"),
        (Conversation((USER,), tool_choice=ToolChoice.REQUIRED, thinking=False), "NO_TOOLS"),
        (
            Conversation((USER,), tools=(TOOL,), tool_choice=ToolChoice.REQUIRED),
            "REQUIRED_WHILE_THINKING",
        ),
        (Conversation((USER,), response_form=ResponseForm.JSON_SCHEMA), "BAD_RESPONSE_SCHEMA"),
        (Conversation((USER,), response_schema_json="{}"), "BAD_RESPONSE_SCHEMA"),
        (conversation(Message(Role.USER, "\ud800")), "UNRENDERABLE_CONVERSATION"),
        (
            conversation(USER, tools=(Tool("f", "", '{"maximum": 1' + "0" * 30 + "}"),)),
            "UNRENDERABLE_CONVERSATION",
        ),
        (
            conversation(USER, tools=(Tool("f", "", '{"title": "\\ud800"}'),)),
            "UNRENDERABLE_CONVERSATION",
        ),
    ],
)
def test_broken_conversation_is_refused(
    broken: Conversation, reason: str, tokenizer: Tokenizer
) -> None:
    """A conversation that breaks a rule is refused with that rule's reason and a hint."""
    with pytest.raises(RequestError) as raised:
        render(broken, tokenizer)
    assert raised.value.reason == reason
    assert raised.value.hint
