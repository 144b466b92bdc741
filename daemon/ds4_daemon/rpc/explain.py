"""Explain: why a prompt is not (wholly) cached, in the words of its own text.

Looks in the caller's salt only, in memory and in the service, for the prefix that goes with the
prompt the longest, and shows both texts around the token where they part. Restores nothing. Called
by `inference`.
"""

import asyncio
from collections.abc import Sequence

from ds4.v1 import inference_pb2 as pb
from ds4.v1 import types_pb2
from ds4_runtime.kv_keys import BLOCK_TOKENS

from ds4_daemon.engine.loop import Engine
from ds4_daemon.engine.prefix import Prefixes
from ds4_daemon.engine.prefix_find import Nearest
from ds4_daemon.kvlink.link import Explained
from ds4_daemon.misses import Miss
from ds4_daemon.text.tokenizer import Tokenizer

# Tokens shown before and after the one where texts part: about two lines.
_AROUND = 24
_SERVICE_S = 5.0


async def explain(
    engine: Engine, tokenizer: Tokenizer, ids: Sequence[int], salt: str
) -> pb.ExplainResponse:
    """The answer for a prompt's ids. `engine` must have its model."""
    prefixes = engine.prefixes
    assert prefixes is not None
    live = prefixes.nearest(ids, salt)
    stored = Explained(0, Miss.DISABLED, 0, ())
    if prefixes.link is not None:
        stored = await asyncio.to_thread(prefixes.link.explain, ids, salt, _SERVICE_S)
    cached = max(live.usable_tokens, stored.usable_tokens)
    answer = pb.ExplainResponse(
        reason=types_pb2.MissReason.ValueType(_reason(prefixes, len(ids), cached, stored).value),
        prompt_tokens=len(ids),
        cached_tokens=cached,
    )
    nearest = max(
        (live, Nearest(stored.common_tokens, 0, stored.next_ids)), key=lambda n: n.common_tokens
    )
    at = nearest.common_tokens
    if at < len(ids) and nearest.next_ids:
        before = list(ids[max(0, at - _AROUND) : at])
        answer.diverges_at = at
        answer.prompt_text = tokenizer.decode([*before, *ids[at : at + _AROUND]])
        answer.stored_text = tokenizer.decode([*before, *nearest.next_ids[:_AROUND]])
    cost_s = prefixes.recompute_s(len(ids) - cached)
    if cost_s:
        answer.cost_s = cost_s
    return answer


def _reason(prefixes: Prefixes, tokens: int, cached: int, stored: Explained) -> Miss:
    most = (tokens - 1) // BLOCK_TOKENS * BLOCK_TOKENS
    if most and cached >= most:
        return Miss.NONE
    least = max(prefixes.link.store.min_tokens, BLOCK_TOKENS) if prefixes.link else 0
    return Miss.TOO_SHORT if most < least else stored.miss
