"""Where sessions wait for their next request, and which of them leaves when memory is wanted.

Owns the idle sessions, their budget, and what is remembered of those that left but have a name or
a pin: the KV cache service has their state. What leaves first is what costs least to get back, for
the memory it holds and the time since it was used. What two of them have in common is held once, as
far as it was compared: while nothing runs, and before any of them leaves. Used by `prefix` and
`sessions`, on the engine's thread; sizes may be read from any.
"""

import time
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import structlog
from ds4_runtime.kv_keys import BLOCK_TOKENS

from ds4_daemon.engine.labels import Label
from ds4_daemon.engine.prefix_session import Session
from ds4_daemon.engine.prefix_state import share
from ds4_daemon.kvlink.layout import Layout

# Restoring takes about a tenth of the time of computing, and less for long prefixes.
_RESTORE_SHARE = 0.1
# Names that are remembered without their state: a few hundred bytes and four a token each.
_MOST_SAVED = 256

_log = structlog.get_logger()


@dataclass(slots=True, eq=False)
class Saved:
    """A session that left memory: what the service needs to find it again."""

    label: Label
    salt: str
    client: tuple[str, str]
    ids: "array[int]"  # up to its last checkpoint
    checkpoints: tuple[int, ...]  # ascending
    used_s: float

    @property
    def length(self) -> int:
        """Tokens that can be restored."""
        return len(self.ids)


class Shelf:
    """`leave` saves what is missing of a session that is to leave; `restorable` tells how many of
    its tokens the service has with a checkpoint, 0 while there is none. Without a `layout` nothing
    is put here.
    """

    def __init__(
        self,
        budget_bytes: int,
        layout: Layout | None,
        leave: Callable[[Session], None],
        restorable: Callable[[Session], int],
    ) -> None:
        self.budget_bytes = budget_bytes
        self.nbytes = 0
        self.sessions: list[Session] = []  # least recently used first
        self.saved: dict[str, Saved] = {}  # by id
        self._leave = leave
        self._restorable = restorable
        self._layout = layout
        self._held: dict[Session, dict[int, int]] = {}  # of each, as `Session.held`
        self._new: dict[Session, None] = {}  # not compared with others yet, oldest first
        self._sharing: Iterator[None] | None = None
        self._compared: tuple[Session, ...] = ()  # by that

    def put(self, session: Session) -> None:
        """Keep it, at the cost of others where the budget is spent."""
        session.used_s = time.monotonic()
        self.sessions.append(session)
        self._new[session] = None
        self._held[session] = session.held
        self._fit(self.budget_bytes)

    def share_step(self) -> bool:
        """Have one buffer of a session share memory with another's; False: nothing is left to."""
        while self._sharing is not None or self._new:
            if self._sharing is None:
                session = next(iter(self._new))
                del self._new[session]
                self._sharing = self._share(session)
            for _ in self._sharing:
                return True
            self._sharing = None
        return False

    def take(self, session: Session) -> None:
        """Give it to a request, or to nobody."""
        self.sessions.remove(session)
        self._new.pop(session, None)
        del self._held[session]
        if session in self._compared:  # what is taken may change, what left must be freed
            self._held |= {s: s.held for s in self._compared if s is not session}
            self._sharing, self._compared = None, ()
        self.nbytes = held_bytes(self._held.values())

    def touch(self, session: Session) -> None:
        """It was of use."""
        session.used_s = time.monotonic()
        self.sessions.remove(session)
        self.sessions.append(session)

    def free(self, nbytes: int) -> int:
        """Have sessions leave until so many bytes came free, pinned ones too; the bytes that did.

        For requests that run: what they need goes before what only may be needed.
        """
        before = self.nbytes
        self._fit(max(before - nbytes, 0))
        return before - self.nbytes

    def remember(self, saved: Saved) -> None:
        """List a session whose state the service has."""
        self.saved[saved.label.id] = saved
        while len(self.saved) > _MOST_SAVED:
            oldest = min(self.saved.values(), key=lambda s: (s.label.pinned, s.used_s))
            del self.saved[oldest.label.id]

    def _share(self, session: Session) -> Iterator[None]:
        """Buffer by buffer, with the one it has most in common with."""
        if self._layout is None:
            return
        ids = np.array(session.ids[: session.length], np.int32)
        others = [s for s in self.sessions if s is not session and s.salt == session.salt]
        other = max(others, key=lambda s: s.common(ids), default=None)
        if other is None or (common := other.common(ids)) < BLOCK_TOKENS:
            return
        self._compared = session, other
        for _ in share(session.state, other.state, self._layout, common):
            yield
        self._compared = ()
        self._held[session] = session.held
        self.nbytes = held_bytes(self._held.values())

    def _fit(self, budget_bytes: int) -> None:
        self.nbytes = held_bytes(self._held.values())
        if self.nbytes > budget_bytes:
            while self.share_step():
                pass
        while self.sessions and self.nbytes > budget_bytes:
            leaving = self._least()
            self.take(leaving)
            self._leave(leaving)
            if leaving.label.kept:
                self._remember_named(leaving, self._restorable(leaving))

    def _remember_named(self, session: Session, tokens: int) -> None:
        label = session.label
        if not tokens:
            _log.warning(
                "named session lost",
                session=label.id,
                tokens=session.length,
                why="memory was wanted, and no KV cache service has its state",
            )
            return
        checkpoints = tuple(sorted(session.saved_checkpoints))
        ids, client = session.ids[:tokens], session.client
        self.remember(Saved(label, session.salt, client, ids, checkpoints, session.used_s))

    def _least(self) -> Session:
        """The one to leave: pinned ones last, before them named ones that would be lost."""
        own = own_bytes(self._held)
        now_s = time.monotonic()
        newest = self.sessions[-1]  # its client is there now

        def value(session: Session) -> tuple[bool, bool, bool, float]:
            saved = self._restorable(session)
            lost = session.length - saved
            cost = lost + _RESTORE_SHARE * saved
            # How likely it is wanted again falls with the time that nobody wanted it.
            worth = cost / (own[session] + 1) / (now_s - session.used_s + 1.0)
            label = session.label
            return label.pinned, label.kept and not saved, session is newest, worth

        return min(self.sessions, key=value)


def held_bytes(pieces: Iterable[dict[int, int]]) -> int:
    """Memory of these pieces, as `Session.held` gives them; what several hold counts once."""
    found: dict[int, int] = {}
    for held in pieces:
        found |= held
    return sum(found.values())


def own_bytes(pieces: Mapping[Session, dict[int, int]]) -> dict[Session, int]:
    """Memory that each of these holds alone."""
    holders = Counter(piece for held in pieces.values() for piece in held)
    return {
        session: sum(nbytes for piece, nbytes in held.items() if holders[piece] == 1)
        for session, held in pieces.items()
    }
