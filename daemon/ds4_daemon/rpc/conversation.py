"""A conversation from the contract's words to those of `text`.

Owns the tables between both enums: a value this version does not know is refused by name, never
read as a default. Checks nothing else; `text.check` does. Called by `request` and `inference`.
"""

from collections.abc import Mapping
from typing import TypeVar

from ds4.v1 import types_pb2 as pb

from ds4_daemon.errors import RequestError
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

_T = TypeVar("_T")

_ROLES: Mapping[int, Role] = {
    pb.ROLE_SYSTEM: Role.SYSTEM,
    pb.ROLE_DEVELOPER: Role.DEVELOPER,
    pb.ROLE_USER: Role.USER,
    pb.ROLE_ASSISTANT: Role.ASSISTANT,
    pb.ROLE_TOOL: Role.TOOL,
    pb.ROLE_REMINDER: Role.REMINDER,
}
_TOOL_CHOICES: Mapping[int, ToolChoice] = {
    pb.TOOL_CHOICE_UNSPECIFIED: ToolChoice.AUTO,
    pb.TOOL_CHOICE_AUTO: ToolChoice.AUTO,
    pb.TOOL_CHOICE_NONE: ToolChoice.NONE,
    pb.TOOL_CHOICE_REQUIRED: ToolChoice.REQUIRED,
}
_THINKING: Mapping[int, bool | None] = {
    pb.THINKING_MODE_UNSPECIFIED: None,
    pb.THINKING_MODE_ON: True,
    pb.THINKING_MODE_OFF: False,
}
_EFFORTS: Mapping[int, Effort] = {
    pb.REASONING_EFFORT_UNSPECIFIED: Effort.DEFAULT,
    pb.REASONING_EFFORT_LOW: Effort.LOW,
    pb.REASONING_EFFORT_HIGH: Effort.HIGH,
    pb.REASONING_EFFORT_XHIGH: Effort.XHIGH,
    pb.REASONING_EFFORT_MAX: Effort.MAX,
}
_FORMS: Mapping[int, ResponseForm] = {
    pb.ResponseFormat.KIND_UNSPECIFIED: ResponseForm.TEXT,
    pb.ResponseFormat.KIND_TEXT: ResponseForm.TEXT,
    pb.ResponseFormat.KIND_JSON_OBJECT: ResponseForm.JSON_OBJECT,
    pb.ResponseFormat.KIND_JSON_SCHEMA: ResponseForm.JSON_SCHEMA,
}


def to_conversation(wire: pb.Conversation) -> Conversation:
    """The same conversation; RequestError for an enum value that has no meaning here."""
    effort = _known(_EFFORTS, wire.reasoning_effort, "reasoning_effort", "ReasoningEffort")
    thinking = _known(_THINKING, wire.thinking_mode, "thinking_mode", "ThinkingMode")
    if thinking is None:
        # Who asks for an effort asks for reasoning; to others the answer comes at once.
        thinking = effort is not Effort.DEFAULT
    return Conversation(
        tuple(_message(message) for message in wire.messages),
        tuple(Tool(t.name, t.description, t.parameters_json, t.strict) for t in wire.tools),
        _known(_TOOL_CHOICES, wire.tool_choice, "tool_choice", "ToolChoice"),
        thinking,
        effort,
        _known(_FORMS, wire.response_format.kind, "response_format", "ResponseFormat.Kind"),
        wire.response_format.schema_json,
    )


def _message(wire: pb.Message) -> Message:
    return Message(
        _known(_ROLES, wire.role, "role", "Role"),
        wire.content,
        wire.reasoning,
        tuple(ToolCall(call.id, call.name, call.arguments_json) for call in wire.tool_calls),
        wire.tool_call_id,
        wire.prefix,
    )


def _known(table: Mapping[int, _T], value: int, field: str, enum: str) -> _T:
    if value not in table:
        raise RequestError(
            f"UNKNOWN_{field.upper()}",
            f"{field} is {value}, which has no meaning here",
            f"use another value of ds4.v1.{enum}",
        )
    return table[value]
