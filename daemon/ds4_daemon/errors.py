"""Every error the daemon raises on purpose, each with what a person needs to act on it.

    DaemonError             reason (UPPER_SNAKE, stable), a sentence, a hint that says what to type
    ├── ConfigError         settings that cannot be used                     (exit 78)
    ├── ModelFileError      weights, config or tokenizer that cannot be used (exit 78)
    ├── RequestError        a request that can never succeed as it is        (INVALID_ARGUMENT)
    ├── NotFoundError       one that names what is not there (any more)      (NOT_FOUND)
    ├── ConflictError       one that something else stands in the way of     (FAILED_PRECONDITION)
    ├── OverloadedError     one that may succeed later                       (RESOURCE_EXHAUSTED)
    ├── UnavailableError    a daemon that loads, drains or failed            (UNAVAILABLE)
    ├── NotBuiltError       a part of the contract that is not served yet    (UNIMPLEMENTED)
    └── EngineError         the engine failed while it ran a step            (INTERNAL)

Raised where the cause is known; `rpc` translates them once, `main` prints them once.
"""

from ds4_runtime.errors import ReasonedError


class DaemonError(ReasonedError):
    """What the daemon raises on purpose."""


class ConfigError(DaemonError):
    """Settings that cannot be used."""


class ModelFileError(DaemonError):
    """Weights, a config or a tokenizer that cannot be used."""


class RequestError(DaemonError):
    """A request that can never succeed as it is."""


class NotFoundError(DaemonError):
    """A request that names what is not there (any more)."""


class ConflictError(DaemonError):
    """A request that the present state of what it names does not allow."""


class OverloadedError(DaemonError):
    """A request that may succeed later."""


class UnavailableError(DaemonError):
    """A daemon that takes no requests now."""


class NotBuiltError(DaemonError):
    """A part of the contract that this daemon does not serve."""


class EngineError(DaemonError):
    """The engine failed while it ran a step."""
