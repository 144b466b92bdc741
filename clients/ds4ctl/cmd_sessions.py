"""`ds4ctl sessions`: the model states that the daemon keeps between requests.

One command for each call of the Sessions service. SESSION is an id or a name.
"""

from typing import TYPE_CHECKING

import click

from ds4ctl.cache_text import many, size
from ds4ctl.options import COUNT, home_option, json_option, open_sessions
from ds4ctl.output import plain, say, tell, write_json
from ds4ctl.session_table import session_rows, session_table

if TYPE_CHECKING:
    from ds4.v1.sessions_pb2 import ForkSessionResponse, RewindSessionResponse, Session


@click.group()
@home_option
def sessions() -> None:
    """Look after the sessions of the daemon; `ds4ctl run --session NAME` extends one."""


@sessions.command("ls")
@click.option("--client", "client_name", metavar="NAME", help="Only those that NAME used last.")
@json_option
@home_option
def list_(client_name: str | None, as_json: bool) -> None:
    """List sessions, most recently used first: one JSON object a line with --json.

    OWN is memory that it alone holds, SHARED that of beginnings which others hold too. Its last
    words stand below it.
    """
    with open_sessions() as client:
        found = client.list(client_name or "")
    if as_json:
        for one in found:
            write_json(plain(one))
    elif found:
        tell(session_table(found))
    else:
        say("there are no sessions")


@sessions.command()
@click.argument("session")
@click.option("--name", default="", metavar="NAME", help="Name of the new one.")
@click.option("--at", "at_token", type=COUNT, metavar="N", help="Fork after N tokens, not its end.")
@json_option
@home_option
def fork(session: str, name: str, at_token: int | None, as_json: bool) -> None:
    """Make a second session of the same state; nothing is computed for it.

    Between two checkpoints it is made of the earlier one, and says how many tokens are missing.
    """
    with open_sessions() as client:
        answer = client.fork(session, name=name, at_token=at_token)
    _tell(answer, as_json, "forked")


@sessions.command()
@click.argument("session")
@click.argument("keep_tokens", type=COUNT)
@json_option
@home_option
def rewind(session: str, keep_tokens: int, as_json: bool) -> None:
    """Take a session back to its first KEEP_TOKENS tokens."""
    with open_sessions() as client:
        answer = client.rewind(session, keep_tokens)
    _tell(answer, as_json, "rewound")


@sessions.command()
@click.argument("session")
@click.argument("name")
@json_option
@home_option
def name(session: str, name: str, as_json: bool) -> None:
    """Call a session NAME; '' takes its name away."""
    with open_sessions() as client:
        changed = client.name(session, name)
    _show(changed, as_json, "named")


@sessions.command()
@click.argument("session")
@json_option
@home_option
def pin(session: str, as_json: bool) -> None:
    """Keep a session until it is unpinned, also when memory is wanted."""
    with open_sessions() as client:
        changed = client.pin(session)
    _show(changed, as_json, "pinned")


@sessions.command()
@click.argument("session")
@json_option
@home_option
def unpin(session: str, as_json: bool) -> None:
    """Let a session go when memory is wanted."""
    with open_sessions() as client:
        changed = client.pin(session, pinned=False)
    _show(changed, as_json, "unpinned")


@sessions.command()
@click.argument("session")
@json_option
@home_option
def delete(session: str, as_json: bool) -> None:
    """Free a session."""
    with open_sessions() as client:
        freed_bytes = client.delete(session)
    if as_json:
        write_json({"freed_bytes": freed_bytes})
    else:
        tell([f"deleted {session}, {size(freed_bytes)} freed"])


def _tell(answer: "ForkSessionResponse | RewindSessionResponse", as_json: bool, done: str) -> None:
    if as_json:
        write_json(plain(answer))
        return
    _show(answer.session, False, done)
    if answer.recompute_tokens:
        say(f"its next request computes {many(answer.recompute_tokens, 'token')} again")


def _show(session: "Session", as_json: bool, done: str) -> None:
    if as_json:
        write_json(plain(session))
    else:
        tell([f"{done} {session.name or session.id}", *session_rows(session)])
