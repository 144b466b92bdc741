"""What ds4ctl says when something fails, and the exit code. Called by `main` and chat.

A person reads one sentence and what to do next; a program that asked for --json reads one object.
"""

import json
from enum import IntEnum
from typing import Any

import click


class ExitCode(IntEnum):
    """The exit codes of ds4ctl, a documented contract."""

    OK = 0
    FAILED = 1
    USAGE = 2
    NOT_RUNNING = 3
    TIMED_OUT = 4
    CONFIGURATION = 78  # EX_CONFIG of sysexits.h
    INTERRUPTED = 130  # as shells say of SIGINT


def exit_code(error: Exception) -> ExitCode | None:
    """The code for an error that has a reason and a hint; None for a defect of ds4ctl."""
    from ds4_client import ConfigurationError, DeadlineError, Ds4Error, NotRunningError

    match error:
        case NotRunningError():
            return ExitCode.NOT_RUNNING
        case DeadlineError():
            return ExitCode.TIMED_OUT
        case ConfigurationError():
            return ExitCode.CONFIGURATION
        case Ds4Error():
            return ExitCode.FAILED
        case _:
            return None


def explain(reason: str, message: str, hint: str, *, as_json: bool) -> None:
    """Tell an error on standard error."""
    if as_json:
        said: dict[str, Any] = {"reason": reason, "message": message, "hint": hint}
        click.echo(json.dumps(said), err=True)
        return
    click.echo(f"ds4ctl: {message}", err=True)
    if hint:
        click.echo(f"  {hint}", err=True)
