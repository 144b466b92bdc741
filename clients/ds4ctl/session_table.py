"""How sessions read on a terminal: a row of 80 columns each, its last words below it."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from ds4ctl.cache_text import size, span
from ds4ctl.output import enum_word, printable

if TYPE_CHECKING:
    from ds4.v1.sessions_pb2 import Session

HEAD = "SESSION           STATE    TOKENS       OWN    SHARED   IDLE  CLIENT"
_COLUMNS = 80
_NAME = 16
_CLIENT = _COLUMNS - HEAD.index("CLIENT")
_INDENT = "    "


def session_table(sessions: Iterable["Session"]) -> list[str]:
    """All of these under their head."""
    return [HEAD, *(row for one in sessions for row in session_rows(one))]


def session_rows(one: "Session") -> list[str]:
    """Its row, and below it what has no column."""
    state = enum_word(one.DESCRIPTOR.fields_by_name["state"].enum_type, one.state)
    called, client = printable(one.name or one.id), printable(one.client.name)
    row = (
        f"{_fit(called, _NAME)}  {state:6}  {one.tokens:>7,}  {size(one.own_bytes):>8}  "
        f"{size(one.shared_bytes):>8}  {span(int(one.idle_s)):>5}  {_fit(client, _CLIENT)}"
    )
    notes = [f"id {one.id}"] if one.name else []
    notes += ["pinned"] if one.pinned else []
    notes += [f"salt {one.salt}"] if one.salt else []
    rows = [row.rstrip(), *([_INDENT + printable("; ".join(notes))] if notes else [])]
    if one.tail_text:
        # Its end is what tells one session from another.
        tail = printable(" ".join(one.tail_text.split()))
        room = _COLUMNS - len(_INDENT) - 1
        rows.append(_INDENT + (tail if len(tail) <= room else f"…{tail[-(room - 1) :]}"))
    return rows


def _fit(text: str, width: int) -> str:
    return f"{text:{width}}" if len(text) <= width else f"{text[: width - 1]}…"
