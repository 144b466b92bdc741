"""What sessions are called: an id from the daemon, a name from a client, and whether to keep it.

A label is not part of a state: it goes on to the one that takes the place of the one it was on.
Owns what a name may be, and who may have the session of that name. Used by `prefix` and `sessions`.
"""

import re
import secrets
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Protocol

from ds4_daemon.errors import ConflictError, RequestError
from ds4_daemon.sched.sequence import Sequence

_NAME = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_ID = re.compile(r"s-[0-9a-f]{8}")


@dataclass(slots=True, eq=False)
class Label:
    """Unique in a daemon, id and name both."""

    id: str = field(default_factory=lambda: f"s-{secrets.token_hex(4)}")
    name: str = ""
    pinned: bool = False

    @property
    def kept(self) -> bool:
        """Somebody means this session: no request takes it that does not name it."""
        return self.pinned or bool(self.name)


class Labelled(Protocol):
    """A session, wherever it is."""

    label: Label
    salt: str


def check_name(name: str) -> str:
    """The name. Raises RequestError where a session cannot be called so."""
    if not _NAME.fullmatch(name) or _ID.fullmatch(name):
        raise RequestError(
            "BAD_SESSION_NAME",
            "the session's name is too long, looks like an id, or has other characters than it may",
            "use up to 128 letters, digits, '.', '_', ':' and '-'",
        )
    return name


def claim(sequence: Sequence, sessions: Iterable[Labelled], active: Collection[Labelled]) -> Label:
    """What the session of this request is to be called: a new label unless there is one.

    Raises ConflictError where the name is another salt's, or another request runs on it.
    """
    name = sequence.session
    found = next((s for s in sessions if s.label.name == name), None) if name else None
    if found is None:
        return Label(name=name)
    if found.salt != sequence.cache.salt:
        raise ConflictError(
            "NAME_TAKEN",
            f"a session of another salt is called {name!r}",
            "use another name, or the salt that it was made with",
        )
    if found in active:
        raise ConflictError(
            "SESSION_IN_USE",
            f"another request runs on the session {name!r}",
            "wait for its end, cancel it, or fork the session",
        )
    return found.label
