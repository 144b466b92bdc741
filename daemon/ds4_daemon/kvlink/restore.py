"""One restore: look up, fetch, verify, unpack into a target. On threads of its own.

Nothing is trusted: each record's length, codec, kind, place and CRC-32 are checked, and the target
is used only when every block and the checkpoint came. A record that is wrong is invalidated, and
what is good above it is fetched instead. Every fault is a miss with a reason.
"""

import time
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import structlog
from ds4.v1 import kvcache_pb2 as pb
from ds4.v1 import types_pb2
from ds4_runtime.kv_keys import BLOCK_TOKENS, block_keys, root_key

from ds4_daemon.kvlink.layout import Layout
from ds4_daemon.kvlink.pack import Codec, Pieces, RecordError, unpack
from ds4_daemon.kvlink.records import Restored, Target, Wanted
from ds4_daemon.kvlink.slab import Data, Run
from ds4_daemon.kvlink.store import LinkError, Store
from ds4_daemon.misses import Miss

# How often a damaged prefix is tried again with less of it.
_TRIES = 3
# A share of the time that computing takes: past it the daemon computes (§5.1), so a slow disk makes
# a prompt a quarter slower and never more.
_SHARE = 0.25
# Blocks that are being unpacked at once; each holds half a megabyte that came.
_PARALLEL = 2
_AHEAD = 16
# Of which the bytes may still be read: those, one that just came, and one more for safety.
_IN_USE = _AHEAD + 2

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Terms:
    """When restoring is worth it, and how long it may take."""

    min_saving_s: float  # of computing; less is not worth the bytes
    min_deadline_s: float


class _BadRecordError(Exception):
    """A record that is not what was saved."""

    def __init__(self, key: bytes, message: str) -> None:
        super().__init__(message)
        self.key = key


class Restorer:
    """Restores one prefix at a time a call; calls may run side by side."""

    def __init__(self, store: Store, layout: Layout, terms: Terms) -> None:
        self._store = store
        self._layout = layout
        self._terms = terms
        self._pool = ThreadPoolExecutor(_PARALLEL, thread_name_prefix="kv-unpack")

    def __call__(
        self, wanted: Wanted, make: Callable[[int], Target], abandoned: Callable[[], bool]
    ) -> Restored:
        """Restore what is worth it. `make` gives a target for so many tokens."""
        began_s = time.monotonic()
        most_tokens, miss = wanted.max_tokens, Miss.NONE
        for _ in range(_TRIES):
            try:
                found = self._once(wanted, most_tokens, began_s, make, abandoned)
                if miss is not Miss.NONE:  # less than there was
                    found = found._replace(miss=miss)
                return found._replace(took_s=time.monotonic() - began_s)
            except LinkError as fault:
                miss = fault.miss
                break
            except _BadRecordError as bad:
                miss = Miss.CORRUPT
                _log.warning("record damaged", key=bad.key.hex(), why=str(bad))
                cause = types_pb2.Error(reason="RECORD_DAMAGED", message=str(bad))
                self._store.invalidate(bad.key, cause)
        return Restored(0, None, miss, time.monotonic() - began_s)

    def close(self) -> None:
        """Take no more work."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _once(
        self,
        wanted: Wanted,
        most_tokens: int,
        began_s: float,
        make: Callable[[int], Target],
        abandoned: Callable[[], bool],
    ) -> Restored:
        whole_s = wanted.recompute_s(len(wanted.token_ids) - wanted.live_tokens)
        limit_s = max(self._terms.min_deadline_s, _SHARE * whole_s)
        end_s = began_s + limit_s
        found = self._store.lookup(
            pb.LookupRequest(
                salt=wanted.salt,
                token_ids=wanted.token_ids,
                max_tokens=most_tokens,
                live_tokens=wanted.live_tokens,
            ),
            _left(end_s),
        )
        miss = Miss(found.miss_reason)
        tokens = found.resume_tokens
        if not found.lease:
            return Restored(0, None, miss)
        try:
            if tokens <= wanted.live_tokens:
                return Restored(0, None, miss)
            if not _possible(tokens, most_tokens):
                raise LinkError(Miss.UNAVAILABLE, f"the service offers {tokens} tokens")
            saving_s = wanted.recompute_s(tokens - wanted.live_tokens)
            if saving_s and saving_s < self._terms.min_saving_s:
                return Restored(0, None, Miss.NOT_WORTH_IT)
            target = make(tokens)
            nbytes = self._fetch(wanted, found, target, end_s, abandoned)
            return Restored(tokens, target, miss, nbytes=nbytes)
        finally:
            self._store.release(found.lease)

    def _fetch(
        self,
        wanted: Wanted,
        found: pb.LookupResponse,
        target: Target,
        end_s: float,
        abandoned: Callable[[], bool],
    ) -> int:
        """All records of the prefix, into the target; their bytes."""
        tokens = found.resume_tokens
        root = root_key(self._store.identity.digest, wanted.salt)
        keys = block_keys(root, wanted.token_ids[:tokens])
        blocks: set[int] = set()
        checkpoint, nbytes, waiting = False, 0, 0
        jobs: deque[tuple[int, Future[None]]] = deque()
        try:
            for run in self._runs(found, end_s, keys):
                if abandoned():
                    raise LinkError(Miss.NONE, "abandoned")  # noqa: TRY301 (as a fault would)
                nbytes += run.data.nbytes
                first, count = run.headers[0].depth - 1, len(run.headers)
                if run.headers[0].kind == 2:
                    places, checkpoint = target.checkpoint_places(), True
                else:
                    blocks.update(range(first, first + count))
                    places = target.block_places(first, count)
                jobs.append((count, self._pool.submit(self._unpack, run, places)))
                waiting += count
                while waiting > _AHEAD:
                    count, job = jobs.popleft()
                    waiting -= count
                    job.result()
            for _, job in jobs:
                job.result()
        except BaseException:
            for _, job in jobs:
                job.cancel()
            raise
        if not checkpoint or blocks != set(range(len(keys))):
            raise LinkError(Miss.UNAVAILABLE, "the service left records out")
        return nbytes

    def _runs(self, found: pb.LookupResponse, end_s: float, keys: list[bytes]) -> Iterator[Run]:
        """Whole records, each at its place in the chain."""
        header: pb.RecordHeader | None = None
        parts: list[memoryview] = []
        missing = 0
        fetch = self._store.fetch(
            found.lease, found.resume_tokens, found.fetch_bytes, _left(end_s), _IN_USE
        )
        for message in fetch:
            if isinstance(message, Run):
                if missing:
                    raise _BadRecordError(header.key if header else b"", "a record ended early")
                for placed in message.headers:
                    _check(placed, keys)
                yield message
                continue
            if isinstance(message, Data):
                view = message.view
            elif message.WhichOneof("part") == "data":
                view = memoryview(message.data)
            elif message.WhichOneof("part") == "header":
                if missing:
                    raise _BadRecordError(header.key if header else b"", "a record ended early")
                header = message.header
                _check(header, keys)
                parts, missing = [], header.data_bytes
                continue
            else:
                raise LinkError(Miss.CORRUPT, message.failure.message or "a record was unreadable")
            missing -= len(view)
            if header is None or missing < 0:
                raise _BadRecordError(header.key if header else b"", "a record has too many bytes")
            parts.append(view)
            if not missing:
                data = parts[0] if len(parts) == 1 else memoryview(b"".join(parts))
                yield Run([header], np.frombuffer(data, np.uint8)[None])
        if missing:
            raise LinkError(Miss.UNAVAILABLE, "the service ended in the middle of a record")

    def _unpack(self, run: Run, places: Pieces) -> None:
        for header, data in zip(run.headers, run.data, strict=True):
            if zlib.crc32(data.data) != header.crc32:
                raise _BadRecordError(header.key, "a record does not match its checksum")
        try:
            unpack(Codec(run.headers[0].codec), run.data, places, self._layout)
        except (RecordError, ValueError) as error:
            raise _BadRecordError(run.headers[0].key, str(error)) from error


def _check(header: pb.RecordHeader, keys: list[bytes]) -> None:
    """That it is a record of this prefix, at the place it says."""
    if header.kind not in (1, 2) or not 1 <= header.depth <= len(keys):
        raise _BadRecordError(header.key, f"a record of kind {header.kind} at depth {header.depth}")
    if header.key != keys[header.depth - 1]:
        raise _BadRecordError(keys[header.depth - 1], "a record of another prefix")
    if header.kind == 2 and header.depth != len(keys):
        raise _BadRecordError(header.key, "a checkpoint of another place")


def _possible(tokens: int, most_tokens: int) -> bool:
    return tokens % BLOCK_TOKENS == 0 and 0 < tokens <= most_tokens


def _left(end_s: float) -> float:
    left_s = end_s - time.monotonic()
    if left_s <= 0:
        raise LinkError(Miss.TIMEOUT, "the KV cache service did not answer in time")
    return left_s
