"""One in so many restores is computed again while the engine has nothing to do, and compared.

Checksums say that bytes are those that were saved, not that they were right: this does. A stretch
between two checkpoints is computed from the earlier one, restored too, and its entries and the
state at its end are compared with what the request was given. A row beyond the tolerance has the
chain set aside. Runs on the engine's thread, one chunk at a time, and gives way to any request.
"""

import traceback
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import structlog
from ds4_runtime.kv_keys import BLOCK_TOKENS
from numpy.typing import NDArray

from ds4_daemon.engine.prefix_session import LATTICE_TOKENS, Session
from ds4_daemon.engine.prefix_state import (
    Bounded,
    Restoring,
    block_pieces,
    bounded,
    checkpoint_pieces,
)
from ds4_daemon.kvlink.grid import Floats
from ds4_daemon.kvlink.link import Link, Pending
from ds4_daemon.kvlink.pack import Pieces
from ds4_daemon.kvlink.records import Target, Wanted
from ds4_daemon.model.state import SessionState
from ds4_daemon.sched.policy import chunk_length

# Of a row's length. Other cuts of the same prompt move rows by up to 0.10 on the stand-in, where an
# FP8 code flips; a row of another prompt is off by 1.4, a zeroed one by 1.
TOLERANCE = 0.3
# More would keep an idle machine busy for long; checkpoints are this close but for thinned ones.
_MOST_TOKENS = 4 * LATTICE_TOKENS

_log = structlog.get_logger()


# Advances a state by some ids.
Compute = Callable[[SessionState, NDArray[np.int32]], object]


@dataclass(slots=True)
class _Case:
    """What was given to a request, and how far its recomputation is."""

    ids: tuple[int, ...]
    key: bytes
    given: SessionState
    given_end: Bounded
    pending: Pending
    first: int = 0  # tokens where recomputing begins
    state: SessionState | None = None  # None until the earlier checkpoint came


class Canary:
    """`every` 0: never."""

    def __init__(
        self,
        link: Link,
        new_state: Callable[[], SessionState],
        compute: Compute,
        *,
        every: int,
        chunk_tokens: int,
        wake: Callable[[], None],
    ) -> None:
        self.checked = 0
        self.failed = 0
        self._link = link
        self._new_state = new_state
        self._compute = compute
        self._every = every
        self._chunk_tokens = chunk_tokens
        self._wake = wake
        self._restores = 0
        self._case: _Case | None = None

    def restored(self, session: Session) -> None:
        """A session was just restored, and no token was computed on it yet."""
        self._restores += 1
        tokens = session.length
        if not self._every or self._restores % self._every or self._case is not None:
            return
        layout, memory = self._link.layout, self._link.memory
        ids = tuple(session.ids[:tokens])
        session.extend_keys(self._link.digest, tokens)

        def make(count: int) -> Target:
            return Restoring(layout, count, tokens, memory)

        # The deepest checkpoint before the last block; a miss begins at nothing.
        wanted = Wanted(ids, session.salt, tokens - BLOCK_TOKENS, 0, lambda _: 0.0)
        pending = self._link.restore(wanted, make, self._wake)
        end = session.boundary(tokens)
        self._case = _Case(ids, session.keys[-1], session.state, end, pending)

    def step(self) -> bool:
        """Do a chunk's worth of work, as the engine is idle; False when there is none now."""
        try:
            return self._step()
        except Exception:  # noqa: BLE001 (logged; a comparison must not end the engine)
            _log.error("restore not compared", trace=traceback.format_exc())
            self._case = None
            return False

    def _step(self) -> bool:
        case = self._case
        if case is None or case.pending.result is None:
            return False
        if case.state is None:
            self._begin(case)
            return True
        end = len(case.ids)
        at = case.state.length
        if at < end:
            count = chunk_length(at, end, self._chunk_tokens)
            self._compute(case.state, np.array(case.ids[at : at + count], np.int32))
        if case.state.length == end:
            self._conclude(case)
        return True

    def _begin(self, case: _Case) -> None:
        assert case.pending.result is not None
        target = case.pending.result.target
        state = self._new_state()
        if isinstance(target, Restoring):
            target.into(state)
        case.first, case.state = state.length, state
        if len(case.ids) - case.first > _MOST_TOKENS:
            self._case = None

    def _conclude(self, case: _Case) -> None:
        self._case = None
        assert case.state is not None
        layout = self._link.layout
        worst = _difference(
            checkpoint_pieces(case.given_end), checkpoint_pieces(bounded(case.state))
        )
        for block in range(case.first // BLOCK_TOKENS, len(case.ids) // BLOCK_TOKENS):
            given, computed = (block_pieces(s, layout, block) for s in (case.given, case.state))
            worst = max(worst, _difference(given, computed))
        _log.info("restore compared", tokens=len(case.ids) - case.first, difference=worst)
        if worst > TOLERANCE:
            self.failed += 1
            _log.error("restored prefix was wrong", key=case.key.hex(), difference=worst)
            message = f"a row differs by {worst:.2f} of its length from what is computed"
            self._link.invalidate(case.key, "CANARY_FAILED", message, quarantine=True)
        self.checked += 1  # last: who sees it counted sees what came of it too


def _difference(given: Pieces, computed: Pieces) -> float:
    """The largest distance between two rows, in lengths of the computed one."""
    pairs = zip((*given.rows, *given.keys), (*computed.rows, *computed.keys), strict=True)
    return max((_farthest(a, b) for a, b in pairs if len(a)), default=0.0)


def _farthest(given: Floats, computed: Floats) -> float:
    length = np.linalg.norm(computed, axis=1)
    away = np.linalg.norm(given - computed, axis=1)
    worst = float((away / np.maximum(length, np.float32(1e-6))).max())
    return worst if worst == worst else float("inf")
