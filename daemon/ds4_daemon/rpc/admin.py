"""The Admin service: how the daemon is, and how it is stopped.

Owns the translation of the engine's counters into the contract. What it tells of a process, a
machine or MLX is read when it is asked. Made by `main`, which also gives it the way to stop.
"""

import asyncio
import os
import resource
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from importlib.metadata import version
from typing import NoReturn

from ds4.v1 import admin_pb2 as pb
from ds4.v1 import admin_pb2_grpc, inference_pb2, types_pb2
from ds4_runtime import host

from ds4_daemon.engine.loop import Drained, Engine
from ds4_daemon.engine.memory import device_name, mlx_memory
from ds4_daemon.errors import NotBuiltError, RequestError
from ds4_daemon.rpc.kv_status import kv_link_status
from ds4_daemon.sched.sequence import Sequence, State

_MIN_WATCH_MS = 100  # ten a second are as many as an eye can use
_DEFAULT_WATCH_MS = 1000

_STATES = {
    "loading": pb.PROCESS_STATE_LOADING,
    "serving": pb.PROCESS_STATE_SERVING,
    "draining": pb.PROCESS_STATE_DRAINING,
    "failed": pb.PROCESS_STATE_FAILED,
}
_PHASES = {
    State.WAITING: inference_pb2.PHASE_QUEUED,
    State.RESTORE: inference_pb2.PHASE_RESTORE,
    State.PREFILL: inference_pb2.PHASE_PREFILL,
    State.DECODE: inference_pb2.PHASE_DECODE,
    State.DONE: inference_pb2.PHASE_UNSPECIFIED,
}


class Admin(admin_pb2_grpc.AdminServicer):
    """Serves one engine. `drain` ends the taking of requests; `stop` has the process leave."""

    def __init__(
        self,
        engine: Engine,
        model: pb.ModelStatus,
        home: str,
        drain: Callable[[float | None], Awaitable[Drained]],
        stop: Callable[[], None],
    ) -> None:
        self._engine = engine
        self._model = model
        self._home = home
        self._drain = drain
        self._stop = stop
        self._began_s = time.monotonic()

    async def Status(self, request: pb.StatusRequest, context: object) -> pb.StatusResponse:
        return self._status()

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
            yield pb.WatchResponse(status=self._status())
            await asyncio.sleep(interval_ms / 1000)

    async def Drain(self, request: pb.DrainRequest, context: object) -> pb.DrainResponse:
        drained = await self._drain(request.limit_ms / 1000 if request.limit_ms else None)
        if request.stop:
            self._stop()
        return pb.DrainResponse(finished=drained.finished, drained=drained.drained)

    def Load(self, request: object, context: object) -> NoReturn:
        raise NotBuiltError(
            "LOAD_NOT_BUILT",
            "a running daemon cannot change its model yet",
            "stop it and start `ds4-daemon --model PATH`",
        )

    def Unload(self, request: object, context: object) -> NoReturn:
        raise NotBuiltError(
            "UNLOAD_NOT_BUILT", "a running daemon cannot free its model yet", "stop the daemon"
        )

    def Metrics(self, request: object, context: object) -> NoReturn:
        raise NotBuiltError(
            "METRICS_NOT_BUILT",
            "counters are not exported for Prometheus yet",
            "Status has the same counters",
        )

    def _status(self) -> pb.StatusResponse:
        problem = self._engine.problem
        status = pb.StatusResponse(
            process=pb.ProcessStatus(
                name="ds4-daemon",
                version=version("ds4"),
                pid=os.getpid(),
                uptime_s=time.monotonic() - self._began_s,
                state=_STATES[self._engine.state],
                home=self._home,
                resident_bytes=host.resident_bytes(),
                peak_resident_bytes=_peak_resident_bytes(),
            ),
            model=self._model_status(),
            engine=self._engine_status(),
            kv_link=kv_link_status(self._engine.prefixes),
        )
        if problem is not None:
            status.process.problem.CopyFrom(
                types_pb2.Error(reason=problem.reason, message=problem.message, hint=problem.hint)
            )
        return status

    def _model_status(self) -> pb.ModelStatus | None:
        model = self._engine.model
        if model is None:
            return None
        prefixes = self._engine.prefixes
        if prefixes is not None and prefixes.link is not None:
            self._model.fingerprint = prefixes.link.digest
        self._model.load_s = self._engine.load_s
        self._model.device = model.device
        self._model.device_name = device_name(model.device)
        self._model.dtype = model.dtype
        self._model.rounding = model.rounding
        return self._model

    def _engine_status(self) -> pb.EngineStatus:
        engine, totals = self._engine, self._engine.totals
        now_s = time.monotonic()
        sequences = engine.sequences
        waiting = sum(s.state is State.WAITING for s in sequences)
        memory = mlx_memory()
        status = pb.EngineStatus(
            running=len(sequences) - waiting,
            waiting=waiting,
            max_running=engine.limits.max_running,
            max_waiting=engine.room.capacity,
            requests=[_request(engine, s, now_s) for s in sequences],
            memory=pb.MemoryStatus(
                weights_bytes=engine.model.weights_bytes if engine.model else 0,
                state_bytes=sum(s.state_bytes for s in sequences),
                active_bytes=memory.active_bytes,
                peak_bytes=memory.peak_bytes,
                cache_bytes=memory.cache_bytes,
                limit_bytes=engine.memory.limit_bytes,
                headroom_bytes=engine.headroom_bytes,
            ),
            totals=pb.Totals(
                requests=totals.requests,
                finished=totals.finished,
                cancelled=totals.cancelled,
                failed=totals.failed,
                refused=totals.refused,
                prompt_tokens=totals.prompt_tokens,
                prefilled_tokens=totals.prefilled_tokens,
                generated_tokens=totals.generated_tokens,
                cached_live_tokens=totals.cached_live_tokens,
                cached_restored_tokens=totals.cached_restored_tokens,
                steps=totals.steps,
                busy_s=totals.busy_s,
            ),
            prefill_tok_s=totals.prefill.tokens_per_s,
            decode_tok_s=totals.decode.tokens_per_s,
            failed_steps=totals.failed_steps_in_a_row,
        )
        if engine.prefixes is not None:
            status.idle_sessions = len(engine.prefixes.idle)
            status.idle_sessions_bytes = engine.prefixes.idle_bytes
            status.memory.state_bytes += engine.prefixes.idle_bytes
        if totals.last_step_s is not None:
            status.last_step_age_s = now_s - totals.last_step_s
        return status


def _request(engine: Engine, sequence: Sequence, now_s: float) -> pb.RequestStatus:
    speed = 0.0
    if sequence.state is State.PREFILL and sequence.prefill_began_s is not None:
        computed = sequence.prefilled_tokens - sequence.cached_tokens
        speed = computed / max(now_s - sequence.prefill_began_s, 1e-6)
    elif sequence.first_token_s is not None and sequence.generated_tokens > 1:
        speed = (sequence.generated_tokens - 1) / max(now_s - sequence.first_token_s, 1e-6)
    return pb.RequestStatus(
        request_id=sequence.request_id,
        client=types_pb2.ClientInfo(name=sequence.client.name, instance=sequence.client.instance),
        phase=_PHASES[sequence.state],
        priority=types_pb2.Priority.ValueType(sequence.priority),
        prompt_tokens=sequence.prompt_tokens,
        prefilled_tokens=sequence.prefilled_tokens,
        generated_tokens=sequence.generated_tokens,
        max_tokens=sequence.max_tokens,
        tokens_per_s=speed,
        age_s=now_s - sequence.arrived_s,
        cached_live_tokens=sequence.cached_live_tokens,
        cached_restored_tokens=sequence.cached_restored_tokens,
        detached=sequence.detached,
        queue_position=engine.room.position(sequence),
        state_bytes=sequence.state_bytes,
    )


def _peak_resident_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, Linux KiB
