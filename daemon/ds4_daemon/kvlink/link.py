"""The daemon's link to the KV cache service: restore, save, invalidate, and how that goes.

Made by `main` once a model's fingerprint is known; used by `engine.prefix` and, for its counters
and for Explain, by `rpc`. Owns the threads of both ways. Nothing here raises for a fault of the
service.
"""

import contextlib
import threading
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import structlog
from ds4.v1 import kvcache_pb2 as pb
from ds4.v1 import types_pb2

from ds4_daemon.kvlink.layout import Layout
from ds4_daemon.kvlink.memory import IDLE_S, Memory
from ds4_daemon.kvlink.records import Restored, Save, Target, Wanted
from ds4_daemon.kvlink.restore import Restorer, Terms
from ds4_daemon.kvlink.sender import Sender
from ds4_daemon.kvlink.store import Identity, LinkError, Store
from ds4_daemon.misses import Miss

# Restores that run at once: more would share one disk and two cores to no gain.
_WORKERS = 2

_log = structlog.get_logger()


class Explained(NamedTuple):
    """`next_ids` are stored where the prompt has something else, or nothing."""

    usable_tokens: int
    miss: Miss
    common_tokens: int
    next_ids: tuple[int, ...]
    restore_s: float = 0.0  # about what restoring those usable takes


class Pending:
    """A restore that runs. `result` is set by then `ready` is True."""

    def __init__(self) -> None:
        self.result: Restored | None = None
        self.abandoned = False

    @property
    def ready(self) -> bool:
        return self.result is not None


class Link:
    """Started with its threads; all methods may be called from any thread and wait for nothing."""

    def __init__(self, socket: Path, identity: Identity, layout: Layout, terms: Terms) -> None:
        self.layout = layout
        self.digest = identity.digest
        self.store = Store(socket, identity)
        self.sender = Sender(self.store, layout)
        self.memory = Memory()  # of restored sessions
        self.misses: Counter[Miss] = Counter()
        self.restores = 0
        self.restored_tokens = 0
        self._restorer = Restorer(self.store, layout, terms)
        self._jobs: deque[Callable[[], None]] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._workers = [
            threading.Thread(target=self._work, name="kv-restore", daemon=True)
            for _ in range(_WORKERS)
        ]
        for worker in self._workers:
            worker.start()
        # So that status tells the truth, and the first prompt knows what is worth saving.
        self._later(self._probe)

    def restore(
        self, wanted: Wanted, make: Callable[[int], Target], done: Callable[[], None]
    ) -> Pending:
        """Begin to restore; `done` is called, on another thread, once `ready`."""
        pending = Pending()

        def run() -> None:
            try:
                result = self._restorer(wanted, make, lambda: pending.abandoned)
            except Exception:  # noqa: BLE001 (logged; a request must not wait for ever)
                # No `exception`: it would log the values of variables, and with them the prompt.
                _log.error("restore failed", trace=traceback.format_exc())
                result = Restored(0, None, Miss.RESTORE_FAILED)
            if result.tokens:
                self.restores += 1
                self.restored_tokens += result.tokens
            else:
                self.misses[result.miss] += 1
            pending.result = result
            done()

        self._later(run)
        return pending

    def explain(self, token_ids: Sequence[int], salt: str, timeout_s: float) -> Explained:
        """Where the service's knowledge of a prompt ends, and why. Waits for the service."""
        try:
            most = len(token_ids) - 1
            found = self.store.lookup(
                pb.LookupRequest(salt=salt, token_ids=token_ids, max_tokens=most, peek=True),
                timeout_s,
            )
            near = self.store.lookup(
                pb.LookupRequest(salt=salt, token_ids=token_ids, nearest=True), timeout_s
            ).nearest
        except LinkError as fault:
            return Explained(0, fault.miss, 0, ())
        return Explained(
            found.resume_tokens,
            Miss(found.miss_reason),
            near.common_tokens,
            tuple(near.next_token_ids),
            found.fetch_s,
        )

    def save(self, save: Save) -> bool:
        """Have a record sent; False when it was dropped."""
        return self.sender.put(save)

    def invalidate(self, key: bytes, reason: str, message: str, *, quarantine: bool) -> None:
        """Have a restored record that could not be used dropped, or set aside, with all below."""
        cause = types_pb2.Error(reason=reason, message=message)
        self._later(lambda: self.store.invalidate(key, cause, quarantine=quarantine))

    def look(self) -> None:
        """Notice at once that the service went; that it came back is for the next to ask."""
        self.store.notice()
        self._later(self._probe)

    def close(self, patience_s: float) -> None:
        """Send what waits for at most so long, then end."""
        self.sender.close(patience_s if self.store.connected else 0.0)
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        end_s = time.monotonic() + patience_s
        for worker in self._workers:  # what is to be invalidated is told
            worker.join(max(0.0, end_s - time.monotonic()))
        self.store.close()
        self._restorer.close()

    def _probe(self) -> None:
        with contextlib.suppress(LinkError):
            self.store.probe()

    def _idle(self) -> None:
        self.memory.forget_idle()
        self._probe()  # to a service that was restarted, what no daemon has opened is old

    def _later(self, job: Callable[[], None]) -> None:
        with self._changed:
            self._jobs.append(job)
            self._changed.notify()

    def _work(self) -> None:
        while True:
            job = self._idle
            with self._changed:
                if self._changed.wait_for(lambda: self._jobs or self._closing, IDLE_S):
                    if not self._jobs:
                        return
                    job = self._jobs.popleft()
            try:
                job()
            except Exception:  # noqa: BLE001 (logged; the thread serves all requests to come)
                _log.error("link job failed", trace=traceback.format_exc())
