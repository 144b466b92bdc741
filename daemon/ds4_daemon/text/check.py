"""The rules of a conversation, each with the reason that is told when it is broken.

Checked before rendering, so that the template never has to guess: a result without its call, a
schema that is no schema, a field on a message of the wrong role. Called by `chat.render`.
"""

import json
import re

from ds4_daemon.errors import RequestError
from ds4_daemon.text.conversation import Conversation, Message, ResponseForm, Role, Tool, ToolChoice

# What the tool-call grammar can carry between quotes and other APIs accept too.
_TOOL_NAME = re.compile(r"[A-Za-z0-9_.:-]{1,128}")


def check_conversation(conversation: Conversation) -> None:
    """RequestError for the first rule that the conversation breaks."""
    if not conversation.messages:
        raise RequestError(
            "EMPTY_CONVERSATION", "The conversation has no messages.", "send at least one message"
        )
    _check_tools(conversation.tools)
    if conversation.tool_choice is ToolChoice.REQUIRED:
        _check_required(conversation)
    for place, message in enumerate(conversation.messages):
        _check_fields(message, place, last=place == len(conversation.messages) - 1)
    _check_results(conversation.messages)
    _check_response(conversation)


def json_object(text: str, reason: str, what: str) -> dict[str, object]:
    """The JSON object that a text holds; RequestError with this reason when it holds none."""
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise RequestError(reason, f"{what} is not JSON: {error}.", "send valid JSON") from error
    if not isinstance(value, dict):
        raise RequestError(reason, f"{what} is not a JSON object.", "send an object: {…}")
    return value


def _refuse_constant(name: str) -> object:
    raise ValueError(f"{name} is no JSON number")


def _check_required(conversation: Conversation) -> None:
    if not conversation.tools:
        raise RequestError(
            "NO_TOOLS", "A tool call is required but there are no tools.", "send tools"
        )
    if conversation.thinking:
        # The prompt would open the call, and so leave no room for reasoning.
        raise RequestError(
            "REQUIRED_WHILE_THINKING",
            "A tool call cannot be required while the model thinks first.",
            "turn thinking off, or let it choose: auto",
        )


def _check_tools(tools: tuple[Tool, ...]) -> None:
    names = set[str]()
    for tool in tools:
        _check_name(tool.name, "a tool")
        if tool.name in names:
            raise RequestError(
                "DUPLICATE_TOOL", f"Two tools are named {tool.name}.", "give each its own name"
            )
        names.add(tool.name)
        if tool.parameters_json:
            json_object(tool.parameters_json, "BAD_TOOL_SCHEMA", f"The schema of {tool.name}")


def _check_name(name: str, what: str) -> None:
    if not _TOOL_NAME.fullmatch(name):
        raise RequestError(
            "BAD_TOOL_NAME",
            f"{name!r} cannot be the name of {what}.",
            "use 1 to 128 letters, digits and _ . : -",
        )


def _check_fields(message: Message, place: int, *, last: bool) -> None:
    assistant = message.role is Role.ASSISTANT
    misplaced = {
        "reasoning": bool(message.reasoning) and not assistant,
        "tool_calls": bool(message.tool_calls) and (not assistant or message.prefix),
        "prefix": message.prefix and not (assistant and last),
        "tool_call_id": bool(message.tool_call_id) and message.role is not Role.TOOL,
    }
    for field, wrong in misplaced.items():
        if wrong:
            raise RequestError(
                "MISPLACED_FIELD",
                f"Message {place} ({message.role}) cannot have {field}.",
                "leave it out, or send it on the message it belongs to",
            )
    if last and assistant and not message.prefix:
        raise RequestError(
            "NOTHING_TO_ANSWER",
            "The last message is the assistant's own.",
            "end with a user or tool message, or set prefix to have it continued",
        )


def _check_results(messages: tuple[Message, ...]) -> None:
    """Every tool result answers a call of the assistant turn before it, once."""
    called = set[str]()
    answered = set[str]()
    for place, message in enumerate(messages):
        if message.role is Role.ASSISTANT:
            called, answered = _call_ids(message, place), set()
        elif message.role is Role.TOOL:
            if message.tool_call_id not in called:
                raise RequestError(
                    "UNKNOWN_TOOL_CALL_ID",
                    f"Message {place} is the result of call {message.tool_call_id!r},"
                    " which the assistant turn before it did not make.",
                    "use the id of one of its tool calls",
                )
            if message.tool_call_id in answered:
                raise RequestError(
                    "DUPLICATE_TOOL_RESULT",
                    f"Message {place} is a second result of call {message.tool_call_id!r}.",
                    "send one result a call",
                )
            answered.add(message.tool_call_id)


def _call_ids(message: Message, place: int) -> set[str]:
    ids = set[str]()
    for call in message.tool_calls:
        _check_name(call.name, "a called tool")
        if not call.id or call.id in ids:
            raise RequestError(
                "BAD_TOOL_CALL_ID",
                f"Message {place} has a tool call with an empty or repeated id {call.id!r}.",
                "give each call of a message its own id",
            )
        ids.add(call.id)
        if call.arguments_json:
            json_object(call.arguments_json, "BAD_TOOL_ARGUMENTS", f"Arguments of {call.name}")
    return ids


def _check_response(conversation: Conversation) -> None:
    schema = conversation.response_schema_json
    if conversation.response_form is ResponseForm.JSON_SCHEMA:
        json_object(schema, "BAD_RESPONSE_SCHEMA", "The response schema")
    elif schema:
        raise RequestError(
            "BAD_RESPONSE_SCHEMA",
            f"A response schema was sent with the form {conversation.response_form}.",
            "ask for the form json_schema, or leave the schema out",
        )
