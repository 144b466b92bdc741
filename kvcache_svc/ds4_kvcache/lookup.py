"""The deepest stored prefix of a prompt, where it can be resumed, and why there is not more.

Called by `rpc`; it changes nothing but what was found damaged, and takes no lease.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

from ds4_runtime.kv_keys import BLOCK_TOKENS, block_key, pack_tokens, root_key, unpack_tokens

from ds4_kvcache.cache import Cache
from ds4_kvcache.index import Node
from ds4_kvcache.store import Store


class Miss(IntEnum):
    """Numbers of ds4.v1.MissReason, those that a cache can know."""

    NONE = 0
    COLD = 1
    TOO_SHORT = 2
    DIVERGED = 3
    EVICTED = 4
    NO_CHECKPOINT = 5
    FINGERPRINT = 6
    SALT = 7


@dataclass(frozen=True, slots=True)
class Found:
    """`node` is the one to resume from; None: there is none that is of use."""

    node: Node | None
    stored_tokens: int
    miss: Miss
    raw_bytes: int = 0  # what a fetch from the first block would send

    @property
    def resume_tokens(self) -> int:
        return self.node.tokens_up_to if self.node else 0


@dataclass(frozen=True, slots=True)
class Nearest:
    """The stored prefix of the same salt that goes with a prompt the longest."""

    common_tokens: int
    token_ids: Sequence[int]  # those stored after that, up to the end of their block


def find(
    cache: Cache, store: Store, salt: str, token_ids: Sequence[int], most: int, live: int
) -> Found:
    """Look up a prefix: at most `most` tokens (0: all but the last), more than `live`."""
    most = min(most or len(token_ids) - 1, len(token_ids))
    path = store.path(salt, token_ids)
    stored_tokens = len(path) * BLOCK_TOKENS
    with store.lock:
        at = len(path)
        if path:  # whoever asks is about to go on from there
            path[-1].touched_s = time.monotonic()
        while at and (path[at - 1].checkpoint is None or path[at - 1].tokens_up_to > most):
            at -= 1
        node = path[at - 1] if at and path[at - 1].tokens_up_to > live else None
        miss = _miss(cache, store, salt, token_ids, path, node)
        if node is None or node.checkpoint is None:
            return Found(None, stored_tokens, miss)
        blocks_bytes = sum(one.block.raw_bytes for one in path[:at])
        return Found(node, stored_tokens, miss, node.checkpoint.raw_bytes + blocks_bytes)


def _miss(
    cache: Cache,
    store: Store,
    salt: str,
    token_ids: Sequence[int],
    path: list[Node],
    node: Node | None,
) -> Miss:
    blocks = (len(token_ids) - 1) // BLOCK_TOKENS  # the last token is always computed
    if len(path) >= blocks:
        return Miss.NONE if node is not None or not blocks else Miss.NO_CHECKPOINT
    parent = path[-1].key if path else root_key(store.digest, salt)
    start = len(path) * BLOCK_TOKENS
    if block_key(parent, pack_tokens(token_ids[start : start + BLOCK_TOKENS])) in store.evicted:
        return Miss.EVICTED
    if path:
        if path[-1].children:
            return Miss.DIVERGED
        # The prefix ends here and goes on in nothing stored: what follows is new.
        return Miss.COLD if node is not None else Miss.NO_CHECKPOINT
    first = pack_tokens(token_ids[:BLOCK_TOKENS])
    for root in store.index.roots.values():
        if root.salt != salt and block_key(root.key, first) in store.index.nodes:
            return Miss.SALT
    for other in cache.stores.values():
        key = block_key(root_key(other.digest, salt), first)
        if other is not store and key in other.index.nodes:
            return Miss.FINGERPRINT
    return Miss.COLD


def nearest(store: Store, salt: str, token_ids: Sequence[int]) -> Nearest:
    """Where a prompt leaves what is stored in its salt, and what is stored there instead."""
    path = store.path(salt, token_ids)
    with store.lock:
        root = store.index.roots.get(root_key(store.digest, salt))
        place = path[-1] if path else root
        children = list(place.children) if place is not None else []
    start = len(path) * BLOCK_TOKENS
    wanted = token_ids[start : start + BLOCK_TOKENS]
    best = Nearest(start, ())
    for child in children:
        stored = unpack_tokens(store.tokens(child))
        same = 0
        while same < min(len(stored), len(wanted)) and stored[same] == wanted[same]:
            same += 1
        if stored and (same + start > best.common_tokens or not best.token_ids):
            best = Nearest(start + same, stored[same:])
    return best
