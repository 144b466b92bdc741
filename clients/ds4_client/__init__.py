"""The client library of ds4: ask the daemon of this machine for text, from any program.

`Client` and `AsyncClient` are the two ways in; what they take is in `prompt` and `request`, what
they give in `events` and `collect`, what they raise in `errors`. It loads neither numpy nor a
model.
"""

from typing import TYPE_CHECKING, Any

from ds4_client.client import Client, Stream
from ds4_client.collect import Collector, Completion
from ds4_client.errors import (
    AccessError,
    CancelledError,
    ConfigurationError,
    DeadlineError,
    Ds4Error,
    InternalError,
    InvalidRequestError,
    NotBuiltError,
    NotFoundError,
    NotRunningError,
    OverloadedError,
)
from ds4_client.events import (
    Accepted,
    Delta,
    Event,
    Finished,
    FinishReason,
    Logprob,
    Phase,
    Progress,
    TokenLogprobs,
    ToolCallDelta,
    Usage,
)
from ds4_client.prompt import Chat, Ids, Message, Prompt, Text, Tool, ToolCall
from ds4_client.request import Options

if TYPE_CHECKING:
    from ds4_client.aio import AsyncClient, AsyncStream

__all__ = [
    "Accepted",
    "AccessError",
    "AsyncClient",
    "AsyncStream",
    "CancelledError",
    "Chat",
    "Client",
    "Collector",
    "Completion",
    "ConfigurationError",
    "DeadlineError",
    "Delta",
    "Ds4Error",
    "Event",
    "FinishReason",
    "Finished",
    "Ids",
    "InternalError",
    "InvalidRequestError",
    "Logprob",
    "Message",
    "NotBuiltError",
    "NotFoundError",
    "NotRunningError",
    "Options",
    "OverloadedError",
    "Phase",
    "Progress",
    "Prompt",
    "Stream",
    "Text",
    "TokenLogprobs",
    "Tool",
    "ToolCall",
    "ToolCallDelta",
    "Usage",
]


def __getattr__(name: str) -> Any:
    """Load the asynchronous client when it is asked for: asyncio takes longer than all the rest."""
    if name in ("AsyncClient", "AsyncStream"):
        from ds4_client import aio

        return getattr(aio, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
