"""A hundred clients of one ds4-daemon that misbehave: leave, cancel, detach, and are killed.

Called by `bench/serving.py --soak SECONDS`. Ten processes of ten clients each send requests without
a pause; some are read to their end, some left, some cancelled, some detached and never looked at
again. Every few seconds one of the processes is killed and another one started. This process
attaches to what was detached, also by the killed, and wants each answer whole. Afterwards nothing
may be open: no request, no lease of the KV cache, no file; and memory may not have grown.

As `python -m bench.serving_soak HOME NUMBER SEED` it is one of the ten.
"""

import asyncio
import json
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import psutil
from ds4.v1 import inference_pb2 as pb
from ds4.v1 import inference_pb2_grpc
from ds4_client import AsyncClient, Text
from ds4_client.channel import OPTIONS, Address
from ds4_client.errors import told
from ds4_client.request import to_request

from bench.kv_process import SERVICE_FLAGS, Process
from bench.serving_load import Texts

PROCESSES, CLIENTS = 10, 10
KILL_EVERY_S = 3.0
# What a request becomes, and how often.
FATES = {"whole": 0.5, "leave": 0.2, "cancel": 0.15, "detach": 0.15}
# Small, so that the sessions which are kept reach it soon, and memory can be compared from then on.
LIVE_BYTES = 100_000_000
MEMORY_RATIO = 1.2
# All that still runs or waits when the clients are gone: detached requests, and little else.
QUIET_S = 120.0
_REFUSED = (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE)


class Wire:
    """The bare calls: what a request becomes is decided here and not by a library."""

    def __init__(self, home: Path) -> None:
        self._channel = grpc.aio.insecure_channel(Address(home).target, options=OPTIONS)
        self.stub = inference_pb2_grpc.InferenceStub(self._channel)

    async def close(self) -> None:
        await self._channel.close()


async def one_request(stub: Any, name: str, texts: Texts) -> dict[str, Any]:
    """Send one and let it meet its fate; what became of it."""
    rng = texts.random
    fate = rng.choices(list(FATES), list(FATES.values()))[0]
    request = to_request(
        name,
        Text(texts.draw(rng.randrange(20, 400))),
        {"max_tokens": rng.randrange(8, 48), "ignore_eos": True},
    )
    request.detach = fate == "detach"
    leave_after = rng.randrange(1, 12) if fate in ("leave", "cancel") else None
    said = {"fate": fate, "id": request.request_id, "client": name}
    tokens, events, reason = 0, 0, ""
    call = stub.Generate(request)
    try:
        async for event in call:
            events += 1
            tokens += len(event.delta.token_ids)
            if event.HasField("finished"):
                reason = pb.FinishReason.Name(event.finished.reason)
            if fate == "detach":  # it was accepted: from now on its answer may not be lost
                return {**said, "tokens": request.sampling.max_tokens}
            if leave_after is not None and events >= leave_after:
                if fate == "leave":
                    return said
                await stub.Cancel(pb.CancelRequest(request_id=request.request_id))
                leave_after = None
    except grpc.aio.AioRpcError as error:
        if error.code() in _REFUSED:
            return {**said, "fate": "refused", "why": told(error).get("ds4-reason", "")}
        return {**said, "wrong": f"{error.code().name}: {error.details()}"}
    finally:
        call.cancel()
    if fate == "whole" and (tokens, reason) != (
        request.sampling.max_tokens,
        "FINISH_REASON_LENGTH",
    ):
        return {**said, "wrong": f"{tokens} of {request.sampling.max_tokens} tokens, {reason}"}
    return said


async def clients(home: Path, number: int, seed: int) -> None:
    """Ten clients until they are killed; a line of JSON for each request."""

    async def forever(index: int) -> None:
        wire, texts = Wire(home), Texts(seed * 1000 + index)
        while True:
            said = await one_request(wire.stub, f"soak-{number}-{index}", texts)
            print(json.dumps(said), flush=True)
            if said["fate"] == "refused":
                await asyncio.sleep(0.5)

    await asyncio.gather(*(forever(index) for index in range(CLIENTS)))


class Soak:
    """The parent: starts and kills clients, and attaches to what they detached."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._random = random.Random(7)
        self._started = 0
        self._reading: set[asyncio.Task[None]] = set()
        self._attaching: set[asyncio.Task[None]] = set()
        self.fates: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.lost: list[str] = []

    async def run(self, seconds: float) -> None:
        processes = [await self._start() for _ in range(PROCESSES)]
        self._wire = Wire(self._home)
        end_s = time.monotonic() + seconds
        while time.monotonic() < end_s:
            await asyncio.sleep(min(KILL_EVERY_S, max(end_s - time.monotonic(), 0)))
            chosen = self._random.randrange(PROCESSES)
            processes[chosen].send_signal(signal.SIGKILL)
            await processes[chosen].wait()
            self.fates["killed process"] += 1
            processes[chosen] = await self._start()
        for process in processes:
            process.send_signal(signal.SIGKILL)
            await process.wait()
        await asyncio.gather(*self._reading)
        await asyncio.gather(*self._attaching)
        await self._wire.close()

    async def _start(self) -> asyncio.subprocess.Process:
        self._started += 1
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "bench.serving_soak"),
            *(str(self._home), str(self._started), str(self._started)),
            stdout=asyncio.subprocess.PIPE,
            cwd=Path(__file__).parents[1],
        )
        _keep(self._reading, self._read(process))
        return process

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        async for line in process.stdout:
            try:
                said = json.loads(line)
            except ValueError:
                continue  # cut by the kill
            self.fates[said["fate"]] += 1
            if "wrong" in said:
                self.wrong.append(f"{said['fate']}: {said['wrong']}")
            elif said["fate"] == "detach":
                _keep(self._attaching, self._attach(said))

    async def _attach(self, said: dict[str, Any]) -> None:
        """Its whole answer, now or some seconds later."""
        await asyncio.sleep(self._random.uniform(0, 5))
        request = pb.AttachRequest(request_id=said["id"])
        request.client.name = said["client"]
        tokens, reason, next_offset = 0, "", 0
        try:
            async for event in self._wire.stub.Attach(request):
                if event.HasField("progress"):
                    continue  # never replayed; it has the position of the event before it
                if event.offset < next_offset:
                    self.lost.append(f"event {event.offset} of {said['id']} came twice")
                next_offset = event.offset + 1
                tokens += len(event.delta.token_ids)
                if event.HasField("finished"):
                    reason = pb.FinishReason.Name(event.finished.reason)
        except grpc.aio.AioRpcError as error:
            self.lost.append(f"{told(error).get('ds4-reason', error.code().name)}")
            return
        if (tokens, reason) != (said["tokens"], "FINISH_REASON_LENGTH"):
            self.lost.append(f"{tokens} of {said['tokens']} tokens, {reason}")


def _keep(tasks: set[asyncio.Task[None]], work: Any) -> None:
    task = asyncio.create_task(work)
    tasks.add(task)
    task.add_done_callback(tasks.discard)


async def soak(cache: Process, home: Path, seconds: float, say: Callable[..., None]) -> Any:
    """Run it and look afterwards: figures, and sentences about what is wrong."""
    async with AsyncClient(home, name="soak") as client:
        pid = (await client.status()).process.pid
        daemon, rss, files = psutil.Process(pid), [], []
        work = Soak(home)
        running = asyncio.create_task(work.run(seconds))
        began_s = time.monotonic()
        while not running.done():
            await asyncio.wait([running], timeout=max(seconds / 30, 1.0))
            rss.append(daemon.memory_info().rss)
            files.append(daemon.num_fds())
            say(f"{time.monotonic() - began_s:6.0f} s", f"{rss[-1] / 1e6:.0f} MB", dict(work.fates))
        await running
        engine = await _quiet(client)
        leases = cache.stats().total.leases
        await asyncio.sleep(2)  # for sockets of the killed to be closed
        found = {
            "requests": dict(work.fates),
            "wrong_answers": len(work.wrong),
            "detached_lost": len(work.lost),
            "open_requests": engine.running + engine.waiting,
            "failed": engine.totals.failed,
            "leases": leases,
            "idle_sessions": engine.idle_sessions,
            "idle_sessions_bytes": engine.idle_sessions_bytes,
            "files": [files[0], daemon.num_fds()],
            # Of the last tenth, beside the second third, when kept sessions have their full size.
            "rss_ratio": round(
                max(rss[-len(rss) // 10 :]) / max(rss[len(rss) // 3 : 2 * len(rss) // 3 + 1]),
                3,
            ),
            "rss_mb": round(daemon.memory_info().rss / 1e6),
        }
    return found, _wrong(found, work)


async def _quiet(client: AsyncClient) -> Any:
    end_s = time.monotonic() + QUIET_S
    while True:
        engine = (await client.status()).engine
        if not engine.running + engine.waiting or time.monotonic() > end_s:
            return engine
        await asyncio.sleep(0.5)


def _wrong(found: dict[str, Any], work: Soak) -> list[str]:
    wrong = [
        f"{found[name]} {name}"
        for name in ("wrong_answers", "detached_lost", "open_requests", "failed", "leases")
        if found[name]
    ]
    wrong += [f"{n} × {what}" for what, n in Counter(work.wrong + work.lost).most_common(5)]
    if found["idle_sessions_bytes"] > LIVE_BYTES:
        wrong.append(f"{found['idle_sessions_bytes']} bytes of idle sessions are kept")
    if found["files"][1] > found["files"][0]:
        wrong.append(f"{found['files'][1]} files are open, {found['files'][0]} were at first")
    if found["rss_ratio"] > MEMORY_RATIO:
        wrong.append(f"memory grew {found['rss_ratio']} times")
    return wrong


def run(
    home: Path, flags: list[str], seconds: float, say: Callable[..., None]
) -> tuple[dict[str, Any], list[str]]:
    """The soak on processes of its own."""
    sizes = ("--live-sessions-bytes", str(LIVE_BYTES))
    with (
        Process("ds4_kvcache.main", home, *SERVICE_FLAGS) as cache,
        Process("ds4_daemon.main", home, *flags, *sizes) as daemon,
    ):
        found, wrong = asyncio.run(soak(cache, daemon.home, seconds, say))
    return found, wrong


if __name__ == "__main__":
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    asyncio.run(clients(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])))
