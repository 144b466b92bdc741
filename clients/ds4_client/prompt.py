"""What may be asked for, and its translation into the contract.

    "Why is the sky blue?"                            one user message
    [{"role": "user", "content": "Why ...?"}, ...]    a chat, as OpenAI's clients write it
    Chat(messages, tools=[...], thinking=False)       the same with all that can be said about it
    Text("Once upon a time")                          plain completion
    Ids([0, 17, 42])                                  token ids as they are

What cannot be translated raises InvalidRequestError before anything is sent. Used by both clients.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from ds4.v1 import inference_pb2, types_pb2

from ds4_client.errors import InvalidRequestError

Role = Literal["system", "developer", "user", "assistant", "tool", "reminder"]
Effort = Literal["low", "high", "xhigh", "max"]


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call that the model made: `arguments` is the text of a JSON object."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Message:
    """One turn. `reasoning` and `tool_calls` are an assistant's, `tool_call_id` is a tool's."""

    role: Role
    content: str = ""
    reasoning: str = ""
    tool_calls: Sequence[ToolCall] = ()
    tool_call_id: str = ""
    prefix: bool = False  # an assistant's last message: the model goes on from it


@dataclass(frozen=True, slots=True)
class Tool:
    """A tool that the model may call. `parameters` is a JSON Schema."""

    name: str
    description: str = ""
    parameters: Mapping[str, Any] | None = None
    strict: bool = False


@dataclass(frozen=True, slots=True)
class Chat:
    """A conversation to answer. `thinking` and `effort` unset leave it to the daemon."""

    messages: Sequence[Message | Mapping[str, Any]]
    tools: Sequence[Tool | Mapping[str, Any]] = ()
    tool_choice: Literal["auto", "none", "required"] = "auto"
    thinking: bool | None = None
    effort: Effort | None = None
    response_format: Mapping[str, Any] | None = None  # as OpenAI's: {"type": "json_object"}


@dataclass(frozen=True, slots=True)
class Text:
    """Plain completion of a text."""

    text: str


@dataclass(frozen=True, slots=True)
class Ids:
    """Token ids, used as they are."""

    ids: Sequence[int] = field(default=())


Prompt = str | Sequence[Message | Mapping[str, Any]] | Chat | Text | Ids


def to_prompt(prompt: Prompt) -> inference_pb2.Prompt:
    """`prompt` as the contract has it."""
    if isinstance(prompt, Text):
        return inference_pb2.Prompt(text=prompt.text)
    if isinstance(prompt, Ids):
        return inference_pb2.Prompt(token_ids=types_pb2.TokenIds(ids=prompt.ids))
    return inference_pb2.Prompt(conversation=to_conversation(prompt))


def to_conversation(prompt: Prompt) -> types_pb2.Conversation:
    """A chat as the contract has it; a string is one user message."""
    if isinstance(prompt, (Text, Ids)):
        raise InvalidRequestError(
            "NOT_A_CHAT", "plain text or token ids cannot be rendered as a chat"
        )
    if isinstance(prompt, str):
        prompt = Chat([Message("user", prompt)])
    elif not isinstance(prompt, Chat):
        prompt = Chat(prompt)
    conversation = types_pb2.Conversation(
        messages=[_message(one) for one in prompt.messages],
        tools=[_tool(one) for one in prompt.tools],
        tool_choice=_enum(types_pb2.ToolChoice, "TOOL_CHOICE", prompt.tool_choice),
    )
    if prompt.thinking is not None:
        mode = "on" if prompt.thinking else "off"
        conversation.thinking_mode = _enum(types_pb2.ThinkingMode, "THINKING_MODE", mode)
    if prompt.effort is not None:
        conversation.reasoning_effort = _enum(
            types_pb2.ReasoningEffort, "REASONING_EFFORT", prompt.effort
        )
    if prompt.response_format is not None:
        conversation.response_format.CopyFrom(_response_format(prompt.response_format))
    return conversation


def _message(message: Message | Mapping[str, Any]) -> types_pb2.Message:
    if not isinstance(message, Message):
        message = _from_openai(message)
    return types_pb2.Message(
        role=_enum(types_pb2.Role, "ROLE", message.role),
        content=message.content,
        reasoning=message.reasoning,
        tool_calls=[
            types_pb2.ToolCall(id=call.id, name=call.name, arguments_json=call.arguments)
            for call in message.tool_calls
        ],
        tool_call_id=message.tool_call_id,
        prefix=message.prefix,
    )


def _from_openai(message: Mapping[str, Any]) -> Message:
    known = {"role", "content", "reasoning", "reasoning_content", "tool_calls", "tool_call_id"}
    unknown = message.keys() - known - {"prefix", "name"}
    if unknown or "role" not in message:
        what = f"unknown fields {sorted(unknown)}" if unknown else "no role"
        raise InvalidRequestError("BAD_MESSAGE", f"a message of the conversation has {what}")
    return Message(
        role=message["role"],
        content=_content(message.get("content")),
        reasoning=message.get("reasoning_content") or message.get("reasoning") or "",
        tool_calls=[_tool_call(call) for call in message.get("tool_calls") or ()],
        tool_call_id=message.get("tool_call_id") or "",
        prefix=bool(message.get("prefix")),
    )


def _content(content: object) -> str:
    """A string, or the list of text parts that OpenAI's clients may send in its place."""
    if content is None or isinstance(content, str):
        return content or ""
    parts: list[str] = []
    for part in content if isinstance(content, Sequence) else (content,):
        text = part.get("text") if isinstance(part, Mapping) else None
        if not isinstance(text, str):
            raise InvalidRequestError("BAD_MESSAGE", "a message has content that is not text")
        parts.append(text)
    return "".join(parts)


def _tool_call(call: ToolCall | Mapping[str, Any]) -> ToolCall:
    if isinstance(call, ToolCall):
        return call
    function = call.get("function", call)
    arguments = function.get("arguments", "{}")
    if not isinstance(arguments, str):
        arguments = json.dumps(arguments)
    return ToolCall(call.get("id", ""), function.get("name", ""), arguments)


def _tool(tool: Tool | Mapping[str, Any]) -> types_pb2.Tool:
    if not isinstance(tool, Tool):
        function = tool.get("function", tool)
        tool = Tool(
            function.get("name", ""),
            function.get("description", ""),
            function.get("parameters"),
            bool(function.get("strict")),
        )
    return types_pb2.Tool(
        name=tool.name,
        description=tool.description,
        parameters_json=json.dumps(tool.parameters) if tool.parameters is not None else "",
        strict=tool.strict,
    )


def _response_format(wanted: Mapping[str, Any]) -> types_pb2.ResponseFormat:
    schema = wanted.get("json_schema", {}).get("schema")
    return types_pb2.ResponseFormat(
        kind=_enum(types_pb2.ResponseFormat.Kind, "KIND", str(wanted.get("type"))),
        schema_json=json.dumps(schema) if schema is not None else "",
    )


def _enum(kind: Any, prefix: str, value: str) -> Any:
    """The number of `value` ("user") in an enum whose names are like ROLE_USER."""
    name = f"{prefix}_{str(value).upper()}"
    if name not in kind.keys() or name.endswith("_UNSPECIFIED"):  # noqa: SIM118 (not a mapping)
        words = [key.removeprefix(f"{prefix}_").lower() for key in kind.keys()[1:]]
        raise InvalidRequestError(
            "UNKNOWN_VALUE",
            f"{value!r} is no {prefix.lower().replace('_', ' ')}",
            f"use one of {', '.join(words)}",
        )
    return kind.Value(name)
