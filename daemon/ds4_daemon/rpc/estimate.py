"""Estimate: what a request would cost now, from what is cached, what waits, and measured speeds.

Looks in memory and asks the KV cache service, restores nothing and keeps no place. A request that
could never run is told why instead of failing. Also tells `accepted` what is cached in memory.
Called by `inference` and `accept`.
"""

import asyncio
import time

from ds4.v1 import inference_pb2 as pb
from ds4.v1 import types_pb2

from ds4_daemon.engine.loop import Engine
from ds4_daemon.engine.memory import reserved_bytes
from ds4_daemon.errors import DaemonError
from ds4_daemon.sched.policy import order
from ds4_daemon.sched.sequence import Sequence, State

# What is not told in this time is not worth waiting for: the prompt is counted as not stored.
_SERVICE_S = 2.0


def live_tokens(engine: Engine, sequence: Sequence) -> int:
    """Tokens of its prompt that are in memory. To be asked before it is submitted."""
    prefixes = engine.prefixes
    if prefixes is None or sequence.cache.bypass:
        return 0
    return prefixes.live_tokens(sequence.ids, sequence.cache.salt)


async def estimate(engine: Engine, sequence: Sequence) -> pb.EstimateResponse:
    """The answer for a request that was checked and not submitted. `engine` must have its model."""
    live, restored, restore_s = live_tokens(engine, sequence), 0, 0.0
    prefixes, salt = engine.prefixes, sequence.cache.salt
    assert prefixes is not None
    if prefixes.link is not None and not sequence.cache.bypass:
        explain = prefixes.link.explain
        stored = await asyncio.to_thread(explain, tuple(sequence.ids), salt, _SERVICE_S)
        if prefixes.is_worth_restoring(stored.usable_tokens, live):
            live, restored, restore_s = 0, stored.usable_tokens, stored.restore_s
    cached = live + restored
    running = [s for s in engine.sequences if s.state is not State.WAITING]
    held_bytes = sum(map(reserved_bytes, running))
    coming_bytes = held_bytes - sum(s.state_bytes for s in running)
    answer = pb.EstimateResponse(
        prompt_tokens=sequence.prompt_tokens,
        cached_live_tokens=live,
        cached_restored_tokens=restored,
        prefill_tokens=sequence.prompt_tokens - cached,
        queue_position=_position(engine, sequence),
        need_bytes=engine.memory.need_bytes(sequence.prompt_tokens, sequence.max_tokens),
        headroom_bytes=engine.memory.headroom_bytes(held_bytes, coming_bytes, prefixes.idle_bytes),
    )
    first_token_s = engine.estimate_s(sequence, cached)
    if first_token_s is not None:
        answer.first_token_s = restore_s + first_token_s
    try:
        engine.memory.check(sequence)
    except DaemonError as error:
        answer.refusal.CopyFrom(refusal(error))
    return answer


def refusal(error: DaemonError) -> types_pb2.Error:
    """Why a request could never run, as the contract tells it."""
    return types_pb2.Error(reason=error.reason, message=error.message, hint=error.hint)


def _position(engine: Engine, sequence: Sequence) -> int:
    waiting = engine.room.waiting
    ordered = order([*waiting, sequence], engine.ledger, time.monotonic())
    return ordered.index(sequence)
