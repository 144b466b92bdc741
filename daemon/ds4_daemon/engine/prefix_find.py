"""Which session in memory goes with a prompt: functions of sessions and ids that change nothing.

A session that waits is of use whole, where the prompt goes on from its end, or at a boundary that
it kept; one that a request runs on at a boundary only. May be called from any thread. Used by
`prefix`.
"""

from collections.abc import Collection, Iterable
from typing import NamedTuple

from ds4_daemon.engine.prefix_session import Ids, Session

# As many as a person needs to see where a prompt went another way.
NEXT_IDS = 64


class Nearest(NamedTuple):
    """The live session that goes with a prompt the longest, and what it has after that."""

    common_tokens: int
    usable_tokens: int  # of any session
    next_ids: tuple[int, ...]


class Useful(NamedTuple):
    """A session, and how much it saves: all that it has, or up to a boundary."""

    tokens: int
    whole: bool
    session: Session


def usable(session: Session, idle: Collection[Session], ids: Ids) -> tuple[int, bool]:
    """Tokens of a prompt that it saves, and whether that is all of it."""
    tokens, whole = session.usable(ids)
    if whole and session not in idle:
        return session.usable_boundary(ids), False
    return tokens, whole


def live_tokens(sessions: Iterable[Session], idle: Collection[Session], ids: Ids) -> int:
    """Most tokens of a prompt that one of them saves."""
    return max((usable(session, idle, ids)[0] for session in sessions), default=0)


def most_useful(
    sessions: Iterable[Session], idle: Collection[Session], ids: Ids, name: str
) -> Useful | None:
    """The one that saves most; of equals one whole, and of these the one of this name."""
    found = [(*usable(session, idle, ids), session) for session in sessions]
    best = max(found, key=lambda f: (f[0], f[1], f[2].label.name == name), default=None)
    return Useful(*best) if best is not None and best[0] else None


def nearest(sessions: Iterable[Session], idle: Collection[Session], ids: Ids) -> Nearest:
    """What they have in common with a prompt."""
    best = Nearest(0, 0, ())
    for session in sessions:
        common = session.common(ids)
        most = max(usable(session, idle, ids)[0], best.usable_tokens)
        if common > best.common_tokens or not best.next_ids:
            best = Nearest(common, most, tuple(session.ids[common : common + NEXT_IDS]))
        else:
            best = best._replace(usable_tokens=most)
    return best
