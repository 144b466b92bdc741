"""Who gets a session, and the memory for it: the waiting room, the ledger and the budget together.

Owns the order of giving: first the policy says who, then idle sessions leave as far as that needs
room. Used by `engine.loop` on its thread; `put` is called from the event loop.
"""

import structlog

from ds4_daemon.engine.memory import SPARE_BYTES, Memory, reserved_bytes
from ds4_daemon.engine.prefix import Prefixes
from ds4_daemon.errors import DaemonError, OverloadedError
from ds4_daemon.sched.ledger import Ledger
from ds4_daemon.sched.policy import Limits, admit, order
from ds4_daemon.sched.queue import WaitingRoom
from ds4_daemon.sched.sequence import Sequence

# Answers outgrow what was reserved for them slowly: some kilobytes a token.
_LOOK_S = 1.0

_log = structlog.get_logger()


class Admission:
    """All that a request passes before it runs."""

    def __init__(self, limits: Limits, room: WaitingRoom, ledger: Ledger, memory: Memory) -> None:
        self.room = room
        self.ledger = ledger
        self.memory = memory
        self._limits = limits
        self._looked_s = 0.0

    def put(self, sequence: Sequence) -> None:
        """Let it wait. Raises OverloadedError where it may not, or could never run."""
        self.memory.check(sequence)
        self.room.put(sequence, self.ledger.of(sequence.client.name).max_waiting)

    def take(self, running: list[Sequence], prefixes: Prefixes, now_s: float) -> list[Sequence]:
        """Those that get a session now, with room in memory for it."""
        waiting = self.room.waiting
        self.ledger.activate(s.client.name for s in (*waiting, *running))
        if not waiting:
            return []
        waiting = order(waiting, self.ledger, now_s)
        self.room.arrange(waiting)
        limited = self.memory.limit_bytes > 0
        headroom_bytes = self.headroom_bytes(running, prefixes.idle_bytes) if limited else None
        chosen = admit(waiting, running, self._limits, self.ledger, now_s, headroom_bytes)
        taken = self.room.take(chosen)
        if taken and limited:
            held_bytes, coming_bytes = _claims(running)
            need_bytes = sum(s.need_bytes for s in taken)
            self._make_room(prefixes, held_bytes + need_bytes, coming_bytes + need_bytes)
        return taken

    def headroom_bytes(self, running: list[Sequence], idle_bytes: int) -> int:
        """What is left beside those that run, if idle sessions leave."""
        held_bytes, coming_bytes = _claims(running)
        return self.memory.headroom_bytes(held_bytes, coming_bytes, idle_bytes)

    def relieve(
        self, running: list[Sequence], prefixes: Prefixes, now_s: float
    ) -> tuple[Sequence, DaemonError] | None:
        """Where answers outgrew the budget: idle sessions leave, then who began last has to end."""
        if not self.memory.limit_bytes or now_s - self._looked_s < _LOOK_S:
            return None
        self._looked_s = now_s
        grown_bytes = sum(s.state_bytes for s in running)
        self._make_room(prefixes, grown_bytes, 0)
        short = self.memory.available_bytes() < SPARE_BYTES // 4
        if not running or not (grown_bytes > self.memory.limit_bytes or short):
            return None
        last = max(running, key=lambda s: s.started_s or 0.0)
        _log.warning("request ended for memory", request_id=last.request_id, bytes=grown_bytes)
        return last, OverloadedError(
            "OUT_OF_MEMORY",
            f"{len(running)} running requests outgrew the memory for sessions, and this one began "
            "last",
            "send it again later with a smaller max_tokens, or raise sessions_bytes in the "
            "daemon's settings",
        )

    def _make_room(self, prefixes: Prefixes, held_bytes: int, coming_bytes: int) -> None:
        over_bytes = max(
            held_bytes + prefixes.idle_bytes - self.memory.limit_bytes,
            coming_bytes + SPARE_BYTES - self.memory.available_bytes(),
        )
        if over_bytes > 0 and prefixes.idle_bytes:
            prefixes.shelf.free(over_bytes)


def _claims(running: list[Sequence]) -> tuple[int, int]:
    """Bytes that these take or will, and the part of it that is not taken yet."""
    held_bytes = sum(map(reserved_bytes, running))
    return held_bytes, held_bytes - sum(s.state_bytes for s in running)
