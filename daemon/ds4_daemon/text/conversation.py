"""The words of a chat: who said what, which tools there are, and how the model shall answer.

Plain values, as a program gave them; JSON stays text, so that nothing is reordered or rounded on
the way. They check nothing (`check` does) and render nothing (`chat` does). Built by `rpc`.
"""

from dataclasses import dataclass
from enum import StrEnum


class Role(StrEnum):
    """Who speaks."""

    SYSTEM = "system"
    DEVELOPER = "developer"  # rendered as a user turn, as in DeepSeek's template
    USER = "user"
    ASSISTANT = "assistant"
    TOOL = "tool"
    REMINDER = "reminder"


class Effort(StrEnum):
    """How long to reason. What each means is a matter of the checkpoint: see `chat.Ladder`."""

    DEFAULT = "default"
    LOW = "low"
    HIGH = "high"
    XHIGH = "xhigh"
    MAX = "max"


class ToolChoice(StrEnum):
    """Whether tools may, must not or must be called."""

    AUTO = "auto"
    NONE = "none"
    REQUIRED = "required"


class ResponseForm(StrEnum):
    """The form of the answer."""

    TEXT = "text"
    JSON_OBJECT = "json_object"
    JSON_SCHEMA = "json_schema"


@dataclass(frozen=True, slots=True)
class Tool:
    """A tool the model may call. `parameters_json`: JSON Schema of an object; "": no arguments."""

    name: str
    description: str = ""
    parameters_json: str = ""
    strict: bool = False


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call in an earlier turn. `arguments_json` is a JSON object; "" is an empty one."""

    id: str
    name: str
    arguments_json: str = ""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn. `reasoning`, `tool_calls` and `prefix` are the assistant's, `tool_call_id` is a
    tool's. `prefix`: the last message is the start of the answer, to be continued."""

    role: Role
    content: str = ""
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str = ""
    prefix: bool = False


@dataclass(frozen=True, slots=True)
class Conversation:
    """What the model is asked. `response_schema_json` goes with ResponseForm.JSON_SCHEMA only."""

    messages: tuple[Message, ...]
    tools: tuple[Tool, ...] = ()
    tool_choice: ToolChoice = ToolChoice.AUTO
    thinking: bool = True
    effort: Effort = Effort.DEFAULT
    response_form: ResponseForm = ResponseForm.TEXT
    response_schema_json: str = ""
