"""The Admin service of ds4-kvcache: how the process is, its counters, and how it is stopped."""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator
from importlib.metadata import version
from typing import NoReturn

from ds4.v1 import admin_pb2 as pb
from ds4.v1 import admin_pb2_grpc, kvstore_pb2, types_pb2
from ds4_runtime import host

from ds4_kvcache.cache import Cache
from ds4_kvcache.errors import NotBuiltError, RequestError
from ds4_kvcache.rpc import messages
from ds4_kvcache.rpc.workers import Workers

_MIN_WATCH_MS = 100  # ten a second are as many as an eye can use
_DEFAULT_WATCH_MS = 1000


class Admin(admin_pb2_grpc.AdminServicer):
    """Serves one cache; `stop` has the process leave."""

    def __init__(self, cache: Cache, workers: Workers, home: str, stop: Callable[[], None]) -> None:
        self._cache = cache
        self._workers = workers
        self._home = home
        self._stop = stop
        self._began_s = time.monotonic()

    async def Status(self, request: pb.StatusRequest, context: object) -> pb.StatusResponse:
        return await self._workers.patient(self._status)

    async def Watch(
        self, request: pb.WatchRequest, context: object
    ) -> AsyncIterator[pb.WatchResponse]:
        interval_ms = request.interval_ms or _DEFAULT_WATCH_MS
        if interval_ms < _MIN_WATCH_MS:
            raise RequestError(
                "INTERVAL_OUT_OF_RANGE",
                f"interval_ms is {interval_ms}",
                f"use {_MIN_WATCH_MS} or more, or 0 for {_DEFAULT_WATCH_MS}",
            )
        while True:
            yield pb.WatchResponse(status=await self._workers.patient(self._status))
            await asyncio.sleep(interval_ms / 1000)

    async def Drain(self, request: pb.DrainRequest, context: object) -> pb.DrainResponse:
        """Bring to disk what waits; calls are short, so there is nothing else to wait for."""
        limit_s = request.limit_ms / 1000 if request.limit_ms else 30.0
        for store in list(self._cache.stores.values()):
            await self._workers.patient(lambda store=store: store.writer.flush(limit_s))  # type: ignore[misc]  # mypy cannot type a lambda's default
        if request.stop:
            self._stop()
        return pb.DrainResponse()

    async def Metrics(self, request: pb.MetricsRequest, context: object) -> pb.MetricsResponse:
        stat = await self._workers.patient(lambda: messages.stat(self._cache))
        return pb.MetricsResponse(text="".join(f"{line}\n" for line in metrics(stat)))

    def Load(self, request: object, context: object) -> NoReturn:
        raise _no_model()

    def Unload(self, request: object, context: object) -> NoReturn:
        raise _no_model()

    def _status(self) -> pb.StatusResponse:
        stat = messages.stat(self._cache)
        status = pb.StatusResponse(
            process=pb.ProcessStatus(
                name="ds4-kvcache",
                version=version("ds4"),
                pid=os.getpid(),
                uptime_s=time.monotonic() - self._began_s,
                state=pb.PROCESS_STATE_SERVING,
                home=self._home,
                resident_bytes=host.resident_bytes(),
            ),
            kv_cache=stat,
        )
        if stat.total.HasField("problem"):
            status.process.problem.CopyFrom(stat.total.problem)
        return status


def _no_model() -> NotBuiltError:
    return NotBuiltError("NO_MODEL_HERE", "ds4-kvcache loads no model", "ask ds4-daemon")


# Name in Prometheus, field of StoreStats, kind, meaning.
_METRICS = (
    ("hits_total", "hits", "counter", "Lookups that found a prefix to restore."),
    ("tokens_saved_total", "tokens_saved", "counter", "Tokens that were not computed again."),
    ("seconds_saved_total", "seconds_saved", "counter", "Seconds that would have taken."),
    ("puts_total", "puts", "counter", "Records stored."),
    ("duplicates_total", "duplicates", "counter", "Records that were there already."),
    ("drops_total", "drops", "counter", "Records not stored."),
    ("evictions_total", "evictions", "counter", "Records evicted."),
    ("corruptions_total", "corruptions", "counter", "Records that were damaged."),
    ("quarantines_total", "quarantines", "counter", "Chains set aside."),
    ("file_bytes", "file_bytes", "gauge", "Size of the files."),
    ("free_bytes", "free_bytes", "gauge", "Free pages in the files."),
    ("queue_bytes", "queue_bytes", "gauge", "Bytes that wait to be written."),
    ("leases", "leases", "gauge", "Leases now held."),
    ("commit_p99_ms", "commit_p99_ms", "gauge", "99th percentile of a commit."),
)


def metrics(stat: kvstore_pb2.StatResponse) -> Iterator[str]:
    """The figures as lines of Prometheus' text format, one series a fingerprint."""
    for name, field, kind, meaning in _METRICS:
        yield f"# HELP ds4_kv_{name} {meaning}"
        yield f"# TYPE ds4_kv_{name} {kind}"
        for store in stat.stores:
            yield f"ds4_kv_{name}{{{_label(store)}}} {getattr(store, field):.17g}"
    yield "# HELP ds4_kv_misses_total Lookups that found nothing of use, by reason."
    yield "# TYPE ds4_kv_misses_total counter"
    for store in stat.stores:
        for miss in store.misses_by_reason:
            reason = types_pb2.MissReason.Name(miss.reason).removeprefix("MISS_REASON_").lower()
            yield f'ds4_kv_misses_total{{{_label(store)},reason="{reason}"}} {miss.count}'
    yield "# HELP ds4_kv_stored_bytes Bytes of records as stored, by class."
    yield "# TYPE ds4_kv_stored_bytes gauge"
    for store in stat.stores:
        for one in store.classes:
            yield f'ds4_kv_stored_bytes{{{_label(store)},class="{one.name}"}} {one.stored_bytes}'
    for name, value in (
        ("budget_bytes", stat.budget_bytes),
        ("disk_free_bytes", stat.disk_free_bytes),
        ("lost_stores", stat.lost_stores),
        ("written_today_bytes", stat.written_today_bytes),
    ):
        yield f"# TYPE ds4_kv_{name} gauge"
        yield f"ds4_kv_{name} {value}"


def _label(store: kvstore_pb2.StoreStats) -> str:
    return f'fingerprint="{store.fingerprint.hex()[:16]}"'
