"""Every error of the runtime: what a process needs around its work and could not get.

    SetupError                  a ReasonedError: reason (UPPER_SNAKE, stable), sentence, hint
    ├── AddressError            a home or a socket path that cannot be used
    ├── DirectoryError          a directory or file that is not private to this user
    ├── SettingError            a flag, variable or file of settings that cannot be used
    └── AlreadyRunningError     another process holds the lock; `pid` is its number, 0 if unknown

All of them are configuration faults for a process that starts: `main` prints them once and leaves
with 78.
"""


class ReasonedError(Exception):
    """`reason`: stable UPPER_SNAKE, for programs; `message`: a sentence; `hint`: what to do.

    Every process's own tree of errors begins with it.
    """

    def __init__(self, reason: str, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class SetupError(ReasonedError):
    """What a process needs around its work and could not get."""


class AddressError(SetupError):
    """A home or a socket path that cannot be used."""


class DirectoryError(SetupError):
    """A directory or file that is not private to this user."""


class SettingError(SetupError):
    """A flag, a variable or a file of settings that cannot be used."""


class AlreadyRunningError(SetupError):
    """Another process holds the lock of this service."""

    def __init__(self, message: str, hint: str, pid: int) -> None:
        super().__init__("ALREADY_RUNNING", message, hint)
        self.pid = pid
