"""Every error of the client library, translated once from what gRPC or the daemon says.

    Ds4Error                    reason (UPPER_SNAKE, stable), a sentence, and a hint: what to type
    ├── ConfigurationError      a home or socket path that cannot be used; nothing was sent
    ├── NotRunningError         no daemon answers at the socket, or it went away
    ├── AccessError             the socket belongs to another user
    ├── InvalidRequestError     a request that can never succeed as it is
    ├── NotFoundError           it names something that is not there (any more)
    ├── OverloadedError         a request that may succeed later; `drained` ones too
    ├── NotBuiltError           a part of the contract that this daemon does not serve
    ├── DeadlineError           its time was up
    ├── CancelledError          it was cancelled, here or by another client
    └── InternalError           the daemon failed, or said something that nobody expected

`channel` raises them for calls that fail, `collect` for requests that end badly.
"""

from typing import Protocol
from urllib.parse import unquote

import grpc


class Ds4Error(Exception):
    """`reason` is a stable UPPER_SNAKE word, `message` a sentence, `hint` what to do."""

    def __init__(self, reason: str, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class ConfigurationError(Ds4Error):
    """A home or socket path that cannot be used."""


class NotRunningError(Ds4Error):
    """No daemon answers at the socket, or it went away."""


class AccessError(Ds4Error):
    """The socket belongs to another user."""


class InvalidRequestError(Ds4Error):
    """A request that can never succeed as it is."""


class NotFoundError(Ds4Error):
    """A request that names something that is not there."""


class OverloadedError(Ds4Error):
    """A request that may succeed later."""


class NotBuiltError(Ds4Error):
    """A part of the contract that this daemon does not serve."""


class DeadlineError(Ds4Error):
    """The time of a call or a request was up."""


class CancelledError(Ds4Error):
    """A request that was cancelled, here or by another client."""


class InternalError(Ds4Error):
    """The daemon failed, or said something that nobody expected."""


_CLASSES: dict[grpc.StatusCode, type[Ds4Error]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidRequestError,
    grpc.StatusCode.OUT_OF_RANGE: InvalidRequestError,
    grpc.StatusCode.FAILED_PRECONDITION: InvalidRequestError,
    grpc.StatusCode.ALREADY_EXISTS: InvalidRequestError,
    grpc.StatusCode.NOT_FOUND: NotFoundError,
    grpc.StatusCode.RESOURCE_EXHAUSTED: OverloadedError,
    grpc.StatusCode.UNIMPLEMENTED: NotBuiltError,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineError,
    grpc.StatusCode.CANCELLED: CancelledError,
    grpc.StatusCode.UNAVAILABLE: OverloadedError,  # of a daemon that gives a reason: it drains
    grpc.StatusCode.PERMISSION_DENIED: AccessError,
    grpc.StatusCode.UNAUTHENTICATED: AccessError,
}


class FailedCall(Protocol):
    """What a failed call of grpc and one of grpc.aio have in common."""

    def code(self) -> grpc.StatusCode: ...

    def details(self) -> str | None: ...

    def trailing_metadata(self) -> object: ...


def told(call: FailedCall) -> dict[str, str]:
    """What the daemon said about a failed call: `ds4-reason` and `ds4-hint`, decoded."""
    metadata = call.trailing_metadata()
    found = {}
    for key, value in metadata or ():  # type: ignore[attr-defined]  # typed as the two stubs allow
        if key.startswith("ds4-") and isinstance(value, str):
            found[key] = unquote(value)
    return found


def from_call(call: FailedCall) -> Ds4Error:
    """The error that a failed call stands for."""
    code, said = call.code(), told(call)
    kind = _CLASSES.get(code, InternalError)
    reason = said.get("ds4-reason", code.name)
    return kind(
        reason, call.details() or f"the call ended with {code.name}", said.get("ds4-hint", "")
    )
