"""Reuse of computed prefixes: `sync(sequence)` extends a live session, restores one, or begins new.

Owns the sessions, those that run and those kept after their request within a memory budget, and
decides when state is saved. A state cannot be rewound, so a session is reused whole, or from a
boundary whose bounded state was kept. Isolation by salt holds in memory as on disk. Everything here
runs on the engine's thread and waits for nothing: restores come back through `poll`.
"""

import time
from collections.abc import Callable
from collections.abc import Sequence as Items

import numpy as np
import structlog
from ds4_runtime.kv_keys import BLOCK_TOKENS

from ds4_daemon.engine.canary import Canary
from ds4_daemon.engine.labels import Label, claim
from ds4_daemon.engine.prefix_find import Nearest, live_tokens, most_useful, nearest
from ds4_daemon.engine.prefix_session import LATTICE_TOKENS, Saver, Session
from ds4_daemon.engine.prefix_state import Restoring, bounded, duplicate, fork
from ds4_daemon.engine.shelf import Saved, Shelf
from ds4_daemon.errors import RequestError
from ds4_daemon.kvlink.layout import Layout
from ds4_daemon.kvlink.link import Link, Pending
from ds4_daemon.kvlink.records import CheckpointKind, Target, Wanted
from ds4_daemon.misses import Miss
from ds4_daemon.model.state import SessionState
from ds4_daemon.sched.sequence import Sequence, State

# Room that a restored session gets beyond its prompt: growing it would copy all its rows.
_ROOM_TOKENS = 4096

_log = structlog.get_logger()


class Prefixes:
    """Sessions of one model; `layout` None: nothing of them is reused.

    Without a link nothing outlives the process, without `live_bytes` a session its request. `wake`
    is called from another thread when a restore came.
    """

    def __init__(
        self,
        new_state: Callable[[], SessionState],
        layout: Layout | None = None,
        link: Link | None = None,
        *,
        canary: Canary | None = None,
        live_bytes: int = 0,
        min_saving_s: float = 0.0,
        prefill_tok_s: Callable[[], float] = lambda: 0.0,
        wake: Callable[[], None] = lambda: None,
    ) -> None:
        self._new_state = new_state
        self.layout = self._layout = layout if layout is not None and layout.fits else None
        self.shelf = Shelf(live_bytes, self._layout, self._leave, self._restorable)
        self.link = link if self._layout is not None else None
        self._saver = Saver(self.link) if self.link is not None else None
        self.canary = canary
        self._min_saving_s = min_saving_s
        self._prefill_tok_s = prefill_tok_s
        self._wake = wake
        self._open: dict[Sequence, Session] = {}
        self._pending: dict[Sequence, Pending] = {}
        if self.link is not None:  # whose saves are to hold up no step of these
            self.link.sender.beside = lambda: bool(self._open)

    @property
    def idle(self) -> list[Session]:
        """Those that no request runs on, least recently used first."""
        return self.shelf.sessions

    @property
    def idle_bytes(self) -> int:
        """Memory of these."""
        return self.shelf.nbytes

    def all_sessions(self) -> list[Session | Saved]:
        """Every session there is: idle, active, saved."""
        return [*self.idle, *self._open.values(), *self.shelf.saved.values()]

    @property
    def active(self) -> dict[Session, Sequence]:
        """Those that a request runs on, and which."""
        return {session: sequence for sequence, session in self._open.items()}

    def sync(self, sequence: Sequence) -> None:
        """Give it a session that is as far as anything known allows, now or through `poll`.

        Raises ConflictError where it may not have the session that it names, RequestError where
        none is kept.
        """
        label = self._label(sequence)
        sequence.started_s = time.monotonic()
        if self._layout is None or sequence.cache.bypass:
            sequence.miss = Miss.BYPASSED if sequence.cache.bypass else Miss.DISABLED
            self._begin(sequence, self._call(label, self._new(sequence)))
            return
        session = self._call(label, self._live(sequence) or self._new(sequence))
        sequence.cached_live_tokens = session.length
        if self._saver is not None:
            self._saver.confirm(session)
        if not self._restore(sequence, session):
            self._begin(sequence, session)

    def poll(self) -> None:
        """Let those go on whose restore came."""
        for sequence, pending in list(self._pending.items()):
            if pending.result is None:
                continue
            del self._pending[sequence]
            tokens, target = pending.result.tokens, pending.result.target
            sequence.miss = pending.result.miss
            session = self._open.pop(sequence)
            if isinstance(target, Restoring):
                label, shorter = session.label, session
                session = self._call(label, self._new(sequence))
                shorter.label = Label()
                if not shorter.spare:
                    self._keep(shorter)
                session.restored(target, sequence.ids[:tokens])
                if self.canary is not None:
                    self.canary.restored(session)
                sequence.cached_live_tokens = 0
                sequence.cached_restored_tokens = tokens
                _log.info(
                    "prefix restored",
                    request_id=sequence.request_id,
                    tokens=tokens,
                    bytes=pending.result.nbytes,
                    ms=round(pending.result.took_s * 1e3),
                )
            self._begin(sequence, session)

    def state(self, sequence: Sequence) -> SessionState:
        """The model's state of a sequence that is open."""
        return self._open[sequence].state

    def begins(self, sequence: Sequence) -> None:
        """A pass that may be dropped midway begins with its state: what it falls back to is kept.

        To be called again only after `advanced`; `close` falls back by itself.
        """
        session = self._open[sequence]
        if self._layout is not None and session.length:
            session.whole = self._new_state()
            duplicate(session.state, session.whole)

    def advanced(self, sequence: Sequence) -> None:
        """Its state grew: keep and save what this position asks for. Before the next step."""
        session = self._open[sequence]
        session.ids = sequence.ids
        if self._layout is None or session.length % BLOCK_TOKENS:
            return
        kind = session.cuts.get(session.length)
        decoding = session.length > sequence.prompt_tokens
        if decoding and session.length % LATTICE_TOKENS == 0:
            kind = CheckpointKind.LATTICE
        if kind is None and not decoding:
            return
        taken = bounded(session.state)
        if decoding:
            session.latest = taken
        elif kind is not CheckpointKind.LATTICE:
            session.snapshots[taken.tokens] = taken
        if kind is not None and self.link is not None and self._saver is not None:
            self.link.store.prefill_tok_s = self._prefill_tok_s()
            self._saver.save(session, taken, kind)

    def again(self, sequence: Sequence) -> bool:
        """After a failure: whether it may begin again without the restored state, which is to
        blame until computing fails too."""
        if not sequence.cached_restored_tokens or sequence.generated_tokens:
            return False
        session = self._open[sequence]
        _log.warning("restored prefix failed", request_id=sequence.request_id)
        if self.link is not None:
            session.extend_keys(self.link.digest, sequence.cached_restored_tokens)
            key = session.keys[sequence.cached_restored_tokens // BLOCK_TOKENS - 1]
            self.link.invalidate(
                key, "RESTORE_FAILED", "the model failed on the restored state", quarantine=False
            )
        sequence.cached_restored_tokens = 0
        sequence.miss = Miss.RESTORE_FAILED
        self._begin(sequence, self._call(session.label, self._new(sequence)))
        return True

    def close(self, sequence: Sequence, *, failed: bool, midway: bool = False) -> None:
        """It ended. Its session is kept and saved, unless it failed: its state is in doubt then.

        Of one that has a name or a pin, what the request began with is kept even so. `midway`: a
        pass of it was dropped, and it falls back to what that began with.
        """
        pending = self._pending.pop(sequence, None)
        if pending is not None:
            pending.abandoned = True
        session = self._open.pop(sequence, None)
        if session is None or self._layout is None:
            return
        if failed:
            at = session.deepest(sequence.cached_tokens)
            if session.label.kept and at:
                before = self.forked(session, at)
                before.label = session.label
                self._keep(before)
            return
        if midway:
            session.state = session.whole or self._new_state()
        session.whole = None
        length = session.length
        if length and length % BLOCK_TOKENS == 0 and length not in session.snapshots:
            session.latest = bounded(session.state)  # cut short between checkpoints
        session.ids = session.ids[:length]
        self._leave(session)
        self._keep(session)

    def idle_step(self) -> bool:
        """Work for an engine that has nothing to run; False when there is none."""
        return self.shelf.share_step() or (self.canary is not None and self.canary.step())

    def close_link(self, patience_s: float) -> None:
        """Send what waits to be saved; once the engine's thread has ended."""
        if self.link is not None:
            self.link.close(patience_s)

    def live_tokens(self, token_ids: Items[int], salt: str) -> int:
        """Tokens of a prompt that a session in memory would save; from any thread."""
        return live_tokens(self._sessions(salt), self.idle, np.array(token_ids, np.int32))

    def nearest(self, token_ids: Items[int], salt: str) -> Nearest:
        """What sessions in memory have in common with a prompt; from any thread."""
        return nearest(self._sessions(salt), self.idle, np.array(token_ids, np.int32))

    # How a sequence gets its session.

    def _sessions(self, salt: str) -> list[Session]:
        return [s for s in [*self.idle, *self._open.values()] if s.salt == salt]

    def _new(self, sequence: Sequence) -> Session:
        cache = sequence.cache
        return Session(self._new_state(), cache.salt, cache.no_save, _client(sequence))

    def _begin(self, sequence: Sequence, session: Session) -> None:
        session.ids = sequence.ids
        session.cuts = self._cuts(sequence)
        sequence.cuts = tuple(sorted(session.cuts))
        sequence.computed_tokens = session.length
        sequence.state_bytes = session.state.nbytes
        sequence.prefill_began_s = time.monotonic()
        sequence.state = State.PREFILL
        self._open[sequence] = session

    def _cuts(self, sequence: Sequence) -> dict[int, CheckpointKind]:
        """Where the prefill of this prompt pauses for a checkpoint."""
        if self._layout is None:
            return {}
        # At least one token is always computed: the last one's logits are wanted.
        end = (sequence.prompt_tokens - 1) // BLOCK_TOKENS * BLOCK_TOKENS
        anchor = min(sequence.anchor_tokens, end) // BLOCK_TOKENS * BLOCK_TOKENS
        cuts = dict.fromkeys(range(LATTICE_TOKENS, end, LATTICE_TOKENS), CheckpointKind.LATTICE)
        cuts |= {anchor: CheckpointKind.ANCHOR, end: CheckpointKind.PROMPT_END}
        return {at: kind for at, kind in cuts.items() if at}

    def _live(self, sequence: Sequence) -> Session | None:
        """The session in memory that saves most: taken whole, or a fork of it.

        One that has a name or a pin is taken by who names it; for the others it is forked.
        """
        sessions, ids = self._sessions(sequence.cache.salt), np.array(sequence.ids, np.int32)
        best = most_useful(sessions, self.idle, ids, sequence.session)
        if best is None:
            return None
        source, named = best.session, best.session.label.name == sequence.session != ""
        if best.whole and (named or not source.label.kept):
            self.shelf.take(source)
            source.resumed(_client(sequence), no_save=sequence.cache.no_save)
            return source
        if source in self.idle:  # used: last to leave
            self.shelf.touch(source)
        forked = self.forked(source, best.tokens)
        forked.client, forked.no_save = _client(sequence), sequence.cache.no_save
        return forked

    def forked(self, source: Session, tokens: int) -> Session:
        """A second session of what `source` is at its end, or was at a boundary that it keeps."""
        assert self._layout is not None
        new = Session(self._new_state(), source.salt, source.no_save, source.client)
        if tokens == source.length and not source.state.torn:
            duplicate(source.state, new.state)
        elif tokens:
            fork(source.state, source.boundary(tokens), self._layout, new.state)
        new.forked(source, tokens)
        return new

    def _label(self, sequence: Sequence) -> Label:
        if sequence.session and self._layout is None:
            raise RequestError(
                "SESSIONS_NOT_KEPT",
                "the state of this model cannot be kept, because its windows end between blocks",
                "leave out the session's name and send the whole conversation",
            )
        return claim(sequence, self.all_sessions(), self._open.values())

    def _call(self, label: Label, session: Session) -> Session:
        """Put a label on a session; the one that it was on goes on without."""
        for other in self.idle:
            if other.label is label and other is not session:
                other.label = Label()
        self.shelf.saved.pop(label.id, None)
        session.label = label
        return session

    def _restore(self, sequence: Sequence, session: Session) -> bool:
        """Whether a restore was begun."""
        link, layout = self.link, self._layout
        most = (sequence.prompt_tokens - 1) // BLOCK_TOKENS * BLOCK_TOKENS
        if link is None or layout is None:
            sequence.miss = Miss.DISABLED
            return False
        if most < max(link.store.min_tokens, BLOCK_TOKENS):
            sequence.miss = Miss.TOO_SHORT
            return False
        if session.length >= most:
            return False
        room = sequence.prompt_tokens + min(sequence.max_tokens, _ROOM_TOKENS)

        def make(tokens: int) -> Target:
            return Restoring(layout, tokens, room, link.memory)

        wanted = Wanted(
            tuple(sequence.ids), sequence.cache.salt, most, session.length, self.recompute_s
        )
        sequence.state = State.RESTORE
        self._open[sequence] = session
        self._pending[sequence] = link.restore(wanted, make, self._wake)
        return True

    def is_worth_restoring(self, stored_tokens: int, live_tokens: int) -> bool:
        """Whether a request would restore so many tokens where it has some in memory."""
        saving_s = self.recompute_s(stored_tokens - live_tokens)
        # While no speed was measured all is worth it, as to `kvlink.restore`.
        return stored_tokens > live_tokens and not 0 < saving_s < self._min_saving_s

    def recompute_s(self, tokens: int) -> float:
        """How long computing so many tokens takes; 0 while no speed was measured."""
        rate = self._prefill_tok_s()
        return tokens / rate if rate else 0.0

    # What stays in memory.

    def _keep(self, session: Session) -> None:
        if session.length and not (session.no_save and not session.label.kept):
            self.shelf.put(session)

    def _leave(self, session: Session) -> None:
        """Save what was not saved of it."""
        if self.link is not None and self._saver is not None:
            self.link.store.prefill_tok_s = self._prefill_tok_s()
            self._saver.save_end(session)

    def _restorable(self, session: Session) -> int:
        """Tokens of it that the service was given with a checkpoint, while it is there."""
        if self.link is None or not self.link.store.connected or session.chain.broken:
            return 0
        return max(session.saved_checkpoints, default=0)


def _client(sequence: Sequence) -> tuple[str, str]:
    return sequence.client.name, sequence.client.instance
