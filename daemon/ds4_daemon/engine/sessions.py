"""What people and programs do with sessions: list, fork, rewind, name, pin, delete.

Works on the sessions of `prefix`, those in memory and those that the KV cache service has. Nothing
is computed here: a position that no state was kept of is computed by the next request, and the
answer says how much that is. On the engine's thread, between two steps. Called by `rpc.sessions`.
"""

import enum
import time
from typing import NamedTuple

from ds4_daemon.engine.labels import Label, check_name
from ds4_daemon.engine.prefix import Prefixes
from ds4_daemon.engine.prefix_session import Session
from ds4_daemon.engine.shelf import Saved, held_bytes, own_bytes
from ds4_daemon.errors import ConflictError, NotFoundError, RequestError

# As many as fit a line or two of text.
_TAIL_TOKENS = 24


class Where(enum.Enum):
    """Where the state of a session is; values as the contract numbers them."""

    ACTIVE = 1
    IDLE = 2
    SAVED = 3


class Info(NamedTuple):
    """A session as it is now."""

    id: str
    name: str
    where: Where
    client: tuple[str, str]
    tokens: int
    own_bytes: int
    shared_bytes: int
    pinned: bool
    idle_s: float  # since its last request ended; 0 while one runs
    salt: str
    tail_ids: tuple[int, ...]


class Moved(NamedTuple):
    """A session at another position, and the tokens from there to the one that was asked for."""

    info: Info
    recompute_tokens: int


class Sessions:
    """Raises NotFoundError, ConflictError and RequestError, and changes nothing then."""

    def __init__(self, prefixes: Prefixes) -> None:
        self._prefixes = prefixes
        self._shelf = prefixes.shelf

    def list(self, client_name: str = "") -> list[Info]:
        """Those of one client, or all; the most recently used first."""
        active, sizes = self._prefixes.active, self._sizes()
        now_s = time.monotonic()
        found = [
            (now_s if session in active else session.used_s, self._info(session, sizes))
            for session in self._prefixes.all_sessions()
            if not client_name or session.client[0] == client_name
        ]
        return [info for _, info in sorted(found, key=lambda one: one[0], reverse=True)]

    def fork(self, ref: str, name: str, at_tokens: int | None) -> Moved:
        """A second session of the same tokens, from its end or from the kept state before that."""
        source = self._find(ref)
        if name:
            self._check_free(name)
        running = source in self._prefixes.active
        wanted = source.length if at_tokens is None else at_tokens
        self._check_position(source, wanted)
        label = Label(name=name)
        if isinstance(source, Saved):
            at = _deepest(source, wanted)
            # Nothing is copied: both are the same records of the service.
            kept = tuple(c for c in source.checkpoints if c <= at)
            new = Saved(label, source.salt, source.client, source.ids[:at], kept, time.monotonic())
            self._shelf.remember(new)
            return Moved(self._now(new), wanted - at)
        at = source.deepest(wanted) if running or wanted < source.length else wanted
        forked = self._prefixes.forked(source, at)
        forked.label, forked.spare = label, False
        self._shelf.put(forked)
        return Moved(self._now(self._still(label)), wanted - at)

    def rewind(self, ref: str, keep_tokens: int) -> Moved:
        """Take it back to the last state that was kept up to `keep_tokens`."""
        session = self._find(ref)
        self._check_idle(session)
        self._check_position(session, keep_tokens)
        if isinstance(session, Saved):
            at = _deepest(session, keep_tokens)
            session.ids = session.ids[:at]
            session.checkpoints = tuple(c for c in session.checkpoints if c <= at)
            return Moved(self._now(session), keep_tokens - at)
        if keep_tokens == session.length:
            return Moved(self._now(session), 0)
        at = session.deepest(keep_tokens)
        # A state cannot go back; another one that shares its memory takes its place.
        back = self._prefixes.forked(session, at)
        back.label, back.spare = session.label, False
        self._shelf.take(session)
        self._shelf.put(back)
        return Moved(self._now(self._still(back.label)), keep_tokens - at)

    def name(self, ref: str, name: str) -> Info:
        """Name or rename it; an empty name takes the name away."""
        session = self._find(ref)
        if name and name != session.label.name:
            self._check_free(name)
        session.label.name = name
        return self._now(session)

    def pin(self, ref: str, *, pinned: bool) -> Info:
        """Keep it until it is unpinned. Raises ConflictError where the budget has no room left."""
        session = self._find(ref)
        if pinned and isinstance(session, Session):
            kept = [s for s in self._prefixes.idle if s.label.pinned and s is not session]
            needed = held_bytes(s.held for s in [*kept, session])
            if needed > self._shelf.budget_bytes:
                raise ConflictError(
                    "NO_ROOM_TO_PIN",
                    f"pinned sessions would take {needed / 1e6:.0f} MB of the "
                    f"{self._shelf.budget_bytes / 1e6:.0f} MB for idle ones",
                    "unpin another one, or raise live_sessions_bytes in the daemon's settings",
                )
        session.label.pinned = pinned
        return self._now(session)

    def delete(self, ref: str) -> int:
        """Free it; the bytes that came free. What the service has of it stays there."""
        session = self._find(ref)
        self._check_idle(session)
        if isinstance(session, Saved):
            del self._shelf.saved[session.label.id]
            return 0
        before = self._shelf.nbytes
        self._shelf.take(session)
        return before - self._shelf.nbytes

    def _find(self, ref: str) -> Session | Saved:
        for session in self._prefixes.all_sessions():
            if ref and ref in (session.label.id, session.label.name):
                return session
        raise NotFoundError(
            "SESSION_NOT_FOUND",
            f"there is no session {ref!r} (any more)" if ref else "no session is named",
            "`ds4ctl sessions ls` lists ids and names",
        )

    def _still(self, label: Label) -> Session | Saved:
        """What was just put on the shelf; it may have left at once where memory is short."""
        for session in self._prefixes.all_sessions():
            if session.label is label:
                return session
        raise ConflictError(
            "NO_ROOM_FOR_SESSION",
            "the session does not fit the memory for idle ones, and no KV cache service has it",
            "raise live_sessions_bytes in the daemon's settings, or start ds4-kvcache",
        )

    def _check_free(self, name: str) -> None:
        check_name(name)
        if any(session.label.name == name for session in self._prefixes.all_sessions()):
            raise ConflictError(
                "NAME_TAKEN",
                f"another session is called {name!r}",
                "use another name, or take it away from that one first",
            )

    def _check_idle(self, session: Session | Saved) -> None:
        request = self._prefixes.active.get(session) if isinstance(session, Session) else None
        if request is not None:
            raise ConflictError(
                "SESSION_IN_USE",
                f"the request {request.request_id} runs on it",
                f"wait for its end, or `ds4ctl cancel {request.request_id}`",
            )

    def _check_position(self, session: Session | Saved, tokens: int) -> None:
        if tokens > session.length:
            raise RequestError(
                "POSITION_PAST_END",
                f"the session has {session.length} tokens, not {tokens}",
                "use a position up to its end",
            )

    def _sizes(self) -> dict[Session, tuple[int, int]]:
        """Bytes of each one in memory, alone and in all."""
        held = {s: s.held for s in [*self._prefixes.active, *self._prefixes.idle]}
        return {s: (alone, sum(held[s].values())) for s, alone in own_bytes(held).items()}

    def _now(self, session: Session | Saved) -> Info:
        return self._info(session, self._sizes())

    def _info(self, session: Session | Saved, sizes: dict[Session, tuple[int, int]]) -> Info:
        label, where, alone, whole = session.label, Where.SAVED, 0, 0
        idle_s = time.monotonic() - session.used_s
        if isinstance(session, Session):
            running = session in self._prefixes.active
            where = Where.ACTIVE if running else Where.IDLE
            idle_s = 0.0 if running else idle_s
            alone, whole = sizes[session]
        return Info(
            label.id,
            label.name,
            where,
            session.client,
            session.length,
            alone,
            whole - alone,
            label.pinned,
            idle_s,
            session.salt,
            tuple(session.ids[max(session.length - _TAIL_TOKENS, 0) : session.length]),
        )


def _deepest(session: Saved, tokens: int) -> int:
    return max((c for c in session.checkpoints if c <= tokens), default=0)
