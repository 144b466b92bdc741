"""A cache in a folder, without processes, and prompts whose records any test can tell.

Time is what the test says: `Clock` is given to the cache as its wall clock.
"""

import random
import zlib
from collections.abc import Sequence
from pathlib import Path

from ds4_kvcache import codec
from ds4_kvcache.budget import Budget
from ds4_kvcache.cache import Cache
from ds4_kvcache.disk import Kind
from ds4_kvcache.identity import Identity
from ds4_kvcache.index import Node
from ds4_kvcache.store import Put, Store
from ds4_runtime.kv_keys import BLOCK_TOKENS, block_key, pack_tokens, root_key

PACKED = 3  # ds4.v1.CODEC_PACKED
ANCHOR, PROMPT_END, OUTPUT_END, LATTICE = 1, 2, 3, 4
IDENTITY = Identity('{"arch":"test"}', 1, 0, "test")
BUDGET_BYTES = 100_000_000


class Clock:
    """A wall clock that a test sets."""

    def __init__(self, now_s: float = 1_800_000_000.0) -> None:
        self.now_s = now_s

    def __call__(self) -> float:
        return self.now_s


def open_cache(
    folder: Path,
    clock: Clock | None = None,
    *,
    budget_bytes: int = BUDGET_BYTES,
    daily_bytes: int = 0,
    fresh_s: float = 0.0,
) -> Cache:
    """All stores of a folder."""
    budget = Budget(folder, budget_bytes, 0, daily_bytes)
    cache = Cache(budget, fresh_s=fresh_s, wall_s=clock or Clock())
    cache.open_all()
    return cache


def open_store(cache: Cache, identity: Identity = IDENTITY) -> Store:
    """The store of the tests' fingerprint; prefill is at 100 tokens a second."""
    return cache.open(identity, identity.digest, 100.0)[1]


def tokens_of(seed: int) -> list[int]:
    """The tokens of a block."""
    source = random.Random(seed)
    return [source.randrange(129_280) for _ in range(BLOCK_TOKENS)]


def data_of(key: bytes, kind: Kind, size: int) -> bytes:
    """What a record of this key and kind holds: half of it zeros, so that it can be compressed."""
    noise = random.Random(key + kind.value).randbytes(size - size // 2)
    return noise + bytes(size // 2)


def block(store: Store, parent: Node | None, seed: int, size: int = 3000, salt: str = "") -> Put:
    """A record of a block below `parent`, or at the root of the salt."""
    parent_key = parent.key if parent else root_key(store.digest, salt)
    tokens = tokens_of(seed)
    key = block_key(parent_key, pack_tokens(tokens))
    data = data_of(key, Kind.BLOCK, size)
    depth = parent.depth + 1 if parent else 1
    return Put(key, Kind.BLOCK, PACKED, depth, zlib.crc32(data), data, parent_key, tokens)


def checkpoint(node: Node, kind: int = PROMPT_END, size: int = 4000) -> Put:
    """A record of a checkpoint at the end of `node`."""
    data = data_of(node.key, Kind.CHECKPOINT, size)
    return Put(
        node.key,
        Kind.CHECKPOINT,
        PACKED,
        node.depth,
        zlib.crc32(data),
        data,
        checkpoint_kind=kind,
    )


def put(store: Store, record: Put, salt: str = "") -> Node:
    """Store a record as the service does; its node."""
    store.check(record, salt)
    store.put(record, salt, codec.compress(record.data))
    return store.node(record.key)


def chain(
    store: Store,
    count: int,
    checkpoints: Sequence[int] = (),
    *,
    seed: int = 0,
    below: Node | None = None,
    salt: str = "",
    kind: int = PROMPT_END,
    size: int = 3000,
) -> list[Node]:
    """Store `count` blocks, each below the one before, with checkpoints at ends of some of them.

    Positions are counted in blocks from 1, those of `below` not counted.
    """
    nodes: list[Node] = []
    for i in range(count):
        parent = nodes[-1] if nodes else below
        nodes.append(put(store, block(store, parent, 1000 * seed + i, size, salt), salt))
        if i + 1 in checkpoints:
            put(store, checkpoint(nodes[-1], kind), salt)
    return nodes


def prompt(nodes: Sequence[Node], store: Store) -> list[int]:
    """The token ids of a chain from the root, and one more."""
    from ds4_runtime.kv_keys import unpack_tokens

    return [token for node in nodes[-1].way() for token in unpack_tokens(store.tokens(node))] + [7]
