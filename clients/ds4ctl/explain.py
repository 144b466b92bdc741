"""What ds4ctl says when something fails, and the exit code. Called by `main` and chat.

A person reads one sentence and what to do next; a program that asked for --json reads one object.
"""

import json
from enum import IntEnum
from typing import Any

import click

from ds4ctl.output import harmless, printable


class ExitCode(IntEnum):
    """The exit codes of ds4ctl, a documented contract."""

    OK = 0
    FAILED = 1
    USAGE = 2
    NOT_RUNNING = 3
    TIMED_OUT = 4
    CONFIGURATION = 78  # EX_CONFIG of sysexits.h
    INTERRUPTED = 130  # as shells say of SIGINT


def explain(reason: str, message: str, hint: str, *, as_json: bool) -> None:
    """Tell an error on standard error."""
    if as_json:
        said: dict[str, Any] = {"reason": reason, "message": message, "hint": hint}
        click.echo(json.dumps(said), err=True)
        return
    click.echo(f"ds4ctl: {harmless(message)}", err=True)
    if hint:
        click.echo(f"  {harmless(hint)}", err=True)


def report(error: Exception, *, as_json: bool) -> ExitCode | None:
    """Tell an error of ds4_client and give its exit code; None for a defect, which is not told."""
    from ds4_client import ConfigurationError, DeadlineError, Ds4Error, NotRunningError

    if not isinstance(error, Ds4Error):
        return None
    message, hint = error.message, error.hint
    if not as_json:  # what others said in them must not look like lines of ours
        message, hint = printable(message), printable(hint)
    explain(error.reason, message, hint, as_json=as_json)
    match error:
        case NotRunningError():
            return ExitCode.NOT_RUNNING
        case DeadlineError():
            return ExitCode.TIMED_OUT
        case ConfigurationError():
            return ExitCode.CONFIGURATION
        case _:
            return ExitCode.FAILED
