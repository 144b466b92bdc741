"""Prefixes that people protect under a name, for a while or until they take the pin away.

Pins lie in the stores, and a name is one in all of them. Called by `rpc` and `house`.
"""

from ds4_kvcache.cache import Cache
from ds4_kvcache.errors import NotFoundError
from ds4_kvcache.index import Node
from ds4_kvcache.load import pack_pin
from ds4_kvcache.store import Store


def pin(cache: Cache, store: Store, node: Node, name: str, ttl_s: float) -> None:
    """Protect a prefix under a name, which may have named another before."""
    until_s = cache.wall_s() + ttl_s if ttl_s else 0.0
    with cache.lock:
        _unpin(cache, name)
        store.pins[name] = (node.key, until_s)
        node.pins.add(name)
        store.writer.mark_pin(name.encode(), pack_pin(node.key, until_s))


def unpin(cache: Cache, name: str) -> tuple[Store, Node | None]:
    """Take a pin away. Raises NotFoundError."""
    with cache.lock:
        found = _unpin(cache, name)
    if found is None:
        raise NotFoundError(
            "NO_SUCH_PIN", f"no pin is named {name!r}", "`ds4ctl cache ls` shows pins"
        )
    return found


def end_pins(cache: Cache) -> None:
    """Take away the pins whose time is over."""
    now_s = cache.wall_s()
    with cache.lock:
        for store in cache.stores.values():
            for name, (_, until_s) in list(store.pins.items()):
                if until_s and until_s < now_s:
                    _unpin(cache, name)


def _unpin(cache: Cache, name: str) -> tuple[Store, Node | None] | None:
    for store in cache.stores.values():
        if name in store.pins:
            key, _ = store.pins.pop(name)
            node = store.index.nodes.get(key)
            if node is not None:
                node.pins.discard(name)
            store.writer.mark_pin(name.encode(), None)
            return store, node
    return None
