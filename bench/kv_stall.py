"""What a save costs the decode steps beside it, for `kv_roundtrip`."""

import asyncio
import time
from array import array

import numpy as np
import psutil
from ds4_daemon.engine.loop import Ended, Engine
from ds4_daemon.engine.prefix_session import LATTICE_TOKENS
from ds4_daemon.kvlink.records import CheckpointKind
from ds4_daemon.sched.sampling import Sampling
from ds4_daemon.sched.sequence import Sequence
from numpy.typing import NDArray

from bench.kv_parts import Feed, Figures, Rows, prompt
from bench.kv_process import Process

# Of steps that are counted at a time: so short that what else the machine does falls on both sides,
# and that all is beside saves where they are made.
_WINDOW_S = 2.0


async def decode_stall(engine: Engine, found: Rows, service: Process, windows: int) -> Figures:
    """Steps of one decode without saves, and beside those that a prefill of 4,096 tokens makes at
    once, in turns: so many windows of each. What a prefill of V4 leaves of pauses is left out."""
    ends: list[float] = []
    decoding = asyncio.create_task(_decode(engine, ends))
    off: list[NDArray[np.float64]] = []
    on: list[NDArray[np.float64]] = []
    await asyncio.sleep(1.0)
    before = _processor(service)
    for window in range(windows):
        feed = Feed(found, prompt(LATTICE_TOKENS), f"stall {window}")
        off.append(await _steps(ends))
        feeding = asyncio.create_task(_burst(feed))
        on.append(await _steps(ends))
        await feeding
        await asyncio.to_thread(found.link.sender.flush, 60)
        await asyncio.to_thread(service.settled)  # its commit falls into no window
    ours_s, all_s, wall_s = (b - a for a, b in zip(before, _processor(service), strict=True))
    engine.cancel(_NAME)
    await decoding
    halves = np.concatenate(off[::2]), np.concatenate(off[1::2])
    without, beside = np.concatenate(off), np.concatenate(on)
    return {
        "decode_p99_ratio": p99(beside) / p99(without),
        "decode_p99_ratio_off": p99(halves[1]) / p99(halves[0]),
        "decode_p50_ratio": float(np.median(beside) / np.median(without)),
        "decode_p50_off_ms": float(np.median(without)),
        "decode_p99_off_ms": p99(without),
        "decode_p99_on_ms": p99(beside),
        "decode_steps": float(len(without) + len(beside)),
        "decode_others_cores": max(0.0, all_s - ours_s) / wall_s,
    }


_NAME = "stalled"


async def _decode(engine: Engine, ends: list[float]) -> None:
    """Note when each step ended, until it is cancelled."""
    events = engine.submit(Sequence(_NAME, array("i", prompt(12)), Sampling(), 100_000))
    while not isinstance(event := await events.get(), Ended):
        ends.append(time.perf_counter())
    if event.error is not None:
        raise event.error


async def _steps(ends: list[float]) -> NDArray[np.float64]:
    """Milliseconds of each step of a window."""
    first = len(ends)
    await asyncio.sleep(_WINDOW_S)
    return np.diff(ends[first:]) * 1e3


async def _burst(feed: Feed) -> None:
    """32 blocks, and a checkpoint after the first four, so that it falls into the phase too."""
    await feed.up_to(512, CheckpointKind.PROMPT_END)
    await feed.up_to(LATTICE_TOKENS, CheckpointKind.LATTICE)


def _processor(service: Process) -> tuple[float, float, float]:
    """Processor seconds of this process and the service, of all there are, what the host of a
    virtual machine took among them, and the time."""
    times = psutil.cpu_times()
    idle_s = times.idle + getattr(times, "iowait", 0.0)
    everything_s = sum(times) - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)
    ours_s = time.process_time() + service.processor_s
    return ours_s, everything_s - idle_s, time.monotonic()


def p99(times: NDArray[np.float64]) -> float:
    return float(np.percentile(times, 99))
