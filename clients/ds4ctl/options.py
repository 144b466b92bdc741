"""The options and inputs that commands share, and the way to a client. Imports click alone.

ds4_client loads gRPC, which takes longer than `ds4ctl --help` may; so it is imported where it is
used.
"""

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from ds4_client import Client
    from ds4_client.sessions import SessionsClient

_F = TypeVar("_F", bound=Callable[..., Any])

_HOME_KEY = "ds4ctl.home"


def _remember_home(context: click.Context, _option: click.Parameter, value: str | None) -> None:
    if value is not None:
        context.meta[_HOME_KEY] = value


# Understood before and after the name of the command.
home_option = click.option(
    "--home",
    metavar="DIR",
    expose_value=False,
    callback=_remember_home,
    help="Home of the installation to talk to, instead of DS4_HOME.",
)
json_option = click.option(
    "--json", "as_json", is_flag=True, help="Write JSON, as docs/json.md describes it."
)

COUNT = click.IntRange(0, 2**32 - 1)  # what the contract can carry


def number(
    _context: click.Context, parameter: click.Parameter, value: float | None
) -> float | None:
    """Refuse what compares with no bound."""
    if value is not None and value != value:
        raise click.BadParameter("nan is no number", param=parameter)
    return value


_GENERATION = (
    click.option(
        "--max-tokens", type=click.IntRange(1, 2**32 - 1), metavar="N", help="Stop after N tokens."
    ),
    click.option("--temperature", type=click.FloatRange(0), metavar="T", help="0 is greedy."),
    click.option(
        "--top-p",
        type=click.FloatRange(0, 1, min_open=True),
        metavar="P",
        help="Keep the likeliest share P.",
    ),
    click.option("--top-k", type=COUNT, metavar="K", help="Keep the K likeliest tokens."),
    click.option(
        "--min-p",
        type=click.FloatRange(0, 1),
        metavar="P",
        help="Keep those P times as likely as the top.",
    ),
    click.option(
        "--seed",
        type=click.IntRange(0, 2**64 - 1),
        metavar="N",
        help="The same seed gives the same text.",
    ),
    click.option("--stop", multiple=True, metavar="TEXT", help="Stop before TEXT; repeatable."),
    click.option(
        "--timeout",
        "timeout_s",
        type=click.FloatRange(0, 1e9, min_open=True),
        metavar="S",
        callback=number,
        help="Give up after S seconds.",
    ),
    click.option("--think/--no-think", "thinking", default=None, help="Reason before the answer?"),
    click.option(
        "--effort",
        type=click.Choice(["low", "high", "xhigh", "max"]),
        help="How long to reason.",
    ),
    click.option("--session", default="", metavar="NAME", help="Extend and keep the session NAME."),
    click.option(
        "--priority",
        type=click.Choice(["interactive", "normal", "background"]),
        # A person waits at a terminal, a program behind a pipe.
        default=lambda: "interactive" if sys.stdout.isatty() else "normal",
        help="How urgent it is beside others; at a terminal: interactive.",
    ),
    click.option("--system", metavar="TEXT", help="Instructions for the whole conversation."),
    click.option(
        "--reasoning/--no-reasoning",
        "show_reasoning",
        default=None,
        help="Show the reasoning on standard error? By default if that is a terminal.",
    ),
)


def generation_options(command: _F) -> _F:
    """Options of the commands that generate; what is not given is left to the daemon."""
    for option in reversed(_GENERATION):
        command = option(command)
    return command


def home() -> str | None:
    """The home that was asked for; None: that of the environment."""
    chosen: str | None = click.get_current_context().meta.get(_HOME_KEY)
    return chosen


def open_client() -> "Client":
    """A client of the home that was asked for."""
    from ds4_client import Client

    return Client(home(), name="ds4ctl")


def open_sessions() -> "SessionsClient":
    """A client of the sessions of that home."""
    from ds4_client.sessions import SessionsClient

    return SessionsClient(home())


def read_input() -> str:
    """All of standard input."""
    try:
        return sys.stdin.buffer.read().decode()
    except UnicodeDecodeError as error:
        raise click.UsageError(f"standard input is not UTF-8 text: {error}") from error
