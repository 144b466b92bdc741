"""A wall clock that goes back: what was dated by the clock that was ahead is dated anew.

Uses, records and the slow check compare dates with now. One from next year would be new until
then: never thinned, never worth less, never idle. Called by `cache`.
"""

import dataclasses
import time
from collections.abc import Callable

from ds4_kvcache.record import Record
from ds4_kvcache.store import Store

# A clock that says less was never set; to believe it would age everything by decades.
_NOT_BEFORE_S = 1_767_225_600.0  # 2026
# More than a clock is slewed by, and less than matters for anything that is dated.
_SLACK_S = 60.0


class ClockWatch:
    """Notices that the wall clock went back while the process ran."""

    def __init__(self, wall_s: Callable[[], float]) -> None:
        self._wall_s = wall_s
        self._ahead_s = wall_s() - time.monotonic()

    def went_back_s(self) -> float:
        """Seconds that the clock went back since the last time this was asked; 0: it did not."""
        before, self._ahead_s = self._ahead_s, self._wall_s() - time.monotonic()
        back_s = before - self._ahead_s
        return back_s if back_s > _SLACK_S else 0.0


def date_anew(store: Store, now_s: float) -> int:
    """Let what is dated after now be of now; how many blocks that concerned."""

    def of_now(record: Record) -> Record:
        late = record.created_s > now_s + _SLACK_S
        return dataclasses.replace(record, created_s=now_s) if late else record

    count = 0
    if now_s < _NOT_BEFORE_S:
        return count
    with store.lock:
        for node in store.index.nodes.values():
            block = of_now(node.block)
            checkpoint = node.checkpoint and of_now(node.checkpoint)
            stored_late = block is not node.block or checkpoint is not node.checkpoint
            used_late = node.use.last_s > now_s + _SLACK_S
            if stored_late:
                node.block, node.checkpoint = block, checkpoint
                store.writer.mark(node)
            if used_late:
                node.use.last_s = now_s
                store.writer.mark_use(node.key)
            count += stored_late or used_late
        store.counters.scrubbed_s = min(store.counters.scrubbed_s, now_s)
    return count
