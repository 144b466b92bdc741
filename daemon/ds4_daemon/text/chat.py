"""A conversation rendered into the prompt that the model was trained on.

The template is DeepSeek's own library, deepseek-recipe; nothing here repeats it. What it marks as
special is encoded as special and nothing else is, so no field of a conversation can forge a turn.
It does not know the wire format: `rpc` builds the conversation, calls `render`, and gives the
result's `opening` to `parse.OutputParser`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType
from typing import Literal

import deepseek_recipe as recipe

from ds4_daemon.errors import RequestError
from ds4_daemon.text.check import check_conversation, json_object
from ds4_daemon.text.conversation import Conversation, Effort, Message, ResponseForm, Role, Tool
from ds4_daemon.text.tokenizer import ASSISTANT, DSML, THINK, USER, Prompt, Tokenizer

# An effort is a prefix text, and which prefix it is depends on the checkpoint. The library's own
# words are those of the second ladder: "low" is no prefix, "high" reads "absolute maximum", "max"
# reads "beyond maximum".
Ladder = Mapping[Effort, Literal["low", "high", "xhigh", "max"]]
APRIL: Ladder = MappingProxyType(
    {  # the first release: no prefix but for its highest effort, "absolute maximum"
        Effort.DEFAULT: "low",
        Effort.LOW: "low",
        Effort.HIGH: "low",
        Effort.XHIGH: "high",
        Effort.MAX: "high",
    }
)
JULY: Ladder = MappingProxyType(
    {  # the 0731 checkpoint, which knows one more step and reasons hard unless told otherwise
        Effort.DEFAULT: "high",
        Effort.LOW: "low",
        Effort.HIGH: "high",
        Effort.XHIGH: "xhigh",
        Effort.MAX: "max",
    }
)

_NO_ARGUMENTS = '{"type": "object", "properties": {}}'
_TEMPLATE = recipe.DeepseekV4Encoding()


class Opening(Enum):
    """What the model writes next: where a parser of its output begins."""

    PLAIN = "plain"  # a completion: text without structure
    REASONING = "reasoning"
    REASONING_CONTINUED = "reasoning continued"
    CONTENT = "content"
    CONTENT_CONTINUED = "content continued"
    TOOL_CALLS = "tool calls"


@dataclass(frozen=True, slots=True)
class Rendered:
    """A prompt as text (specials spelled out), as ids, and what it leaves for the model to do.

    `shared_tokens` is where the part ends that other conversations are likely to begin with: the
    last user's turn before the first answer.
    """

    text: str
    ids: list[int]
    opening: Opening
    shared_tokens: int = 0


def complete(text: str, tokenizer: Tokenizer) -> Rendered:
    """The prompt of a plain completion: begin-of-text, then the text, which can forge nothing."""
    bos = tokenizer.specials[tokenizer.bos_id]
    return Rendered(bos + text, tokenizer.encode_completion(text), Opening.PLAIN)


def render(conversation: Conversation, tokenizer: Tokenizer, *, ladder: Ladder = APRIL) -> Rendered:
    """The prompt of a chat; RequestError for a conversation that breaks a rule."""
    check_conversation(conversation)
    try:
        rendered = _TEMPLATE.render_conversation(_convert(conversation, ladder))
    except (ValueError, TypeError, OverflowError, RuntimeError) as error:
        raise RequestError(
            "UNRENDERABLE_CONVERSATION",
            f"The conversation cannot be rendered: {error}.",
            "send valid Unicode, and whole numbers of at most 64 bits in schemas",
        ) from error
    prompt = Prompt(rendered.prompt, rendered.special_ranges)
    ids = tokenizer.encode_prompt(prompt)
    return Rendered(prompt.text, ids, _opening(prompt), _shared_tokens(ids, tokenizer))


def _shared_tokens(ids: list[int], tokenizer: Tokenizer) -> int:
    """Where the turn of the last user before the first answer begins; 0 where there is none."""
    user, assistant = tokenizer.special_id(USER), tokenizer.special_id(ASSISTANT)
    first_answer = ids.index(assistant) if assistant in ids else len(ids)
    return max((at for at in range(first_answer) if ids[at] == user), default=0)


def _opening(prompt: Prompt) -> Opening:
    """The last special of a prompt tells: the template always ends in an opened answer."""
    start, end = prompt.special_ranges[-1]
    if prompt.text[start:end] == DSML:
        return Opening.TOOL_CALLS
    continued = end < len(prompt.text)
    if prompt.text[start:end] == THINK:
        return Opening.REASONING_CONTINUED if continued else Opening.REASONING
    return Opening.CONTENT_CONTINUED if continued else Opening.CONTENT


def _convert(conversation: Conversation, ladder: Ladder) -> recipe.Conversation:
    schema: dict[str, object] | None = None
    if conversation.response_form is ResponseForm.JSON_SCHEMA:
        schema = json_object(conversation.response_schema_json, "BAD_RESPONSE_SCHEMA", "It")
    as_json = conversation.response_form is ResponseForm.JSON_OBJECT
    return recipe.Conversation(
        [_convert_message(message, conversation.thinking) for message in conversation.messages],
        thinking_mode=conversation.thinking,
        tools=[_convert_tool(tool) for tool in conversation.tools],
        tool_choice=conversation.tool_choice.value,
        reasoning_effort=ladder[conversation.effort],
        response_format="json_object" if as_json else "text",
        response_schema=schema,
    )


def _convert_tool(tool: Tool) -> recipe.ToolDefinition:
    schema = json_object(tool.parameters_json or _NO_ARGUMENTS, "BAD_TOOL_SCHEMA", "It")
    return recipe.ToolDefinition(tool.name, tool.description, schema, tool.strict or None)


def _convert_message(message: Message, thinking: bool) -> recipe.Message:
    match message.role:
        case Role.SYSTEM:
            return recipe.SystemMessage(message.content)
        case Role.DEVELOPER | Role.USER:
            return recipe.UserMessage(message.content)
        case Role.TOOL:
            return recipe.ToolMessage(message.content, message.tool_call_id)
        case Role.REMINDER:
            return recipe.LatestReminderMessage(message.content)
        case Role.ASSISTANT:
            calls = [
                recipe.ToolCall(call.id, call.name, call.arguments_json or "{}")
                for call in message.tool_calls
            ]
            # The template leaves no trace of None, but an empty pair of tags of "".
            reasoning = message.reasoning if thinking else None
            return recipe.AssistantMessage(
                message.content, reasoning, calls or None, message.prefix
            )
