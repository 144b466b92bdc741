"""What people ask of the cache: which prefixes there are, what is in a block, what to drop.

Plain values in and out; `rpc.people` translates. A key may be given by its first bytes.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ds4_kvcache import evict
from ds4_kvcache.cache import Cache
from ds4_kvcache.disk import Kind
from ds4_kvcache.errors import KvError, NotFoundError, RefusedError, RequestError
from ds4_kvcache.evict import Victim
from ds4_kvcache.index import Node
from ds4_kvcache.store import Store

# Of one Inspect, some megabytes; a brief one shows all that 64 GB hold of V4 Flash.
MOST_NODES, MOST_BRIEF_NODES = 20_000, 200_000


@dataclass(frozen=True, slots=True)
class Selection:
    """Which blocks are meant; conditions that are set hold together."""

    fingerprint: bytes = b""  # its digest, or the first bytes of it
    salt: str | None = None
    key: bytes = b""  # or the first bytes of it; with everything below
    idle_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Prefix:
    """The way from a root to one leaf."""

    store: Store
    node: Node
    salt: str
    own_bytes: int  # of what no other prefix uses
    bytes: int
    created_s: float
    last_s: float
    hits: int
    seconds_saved: float
    pins: tuple[str, ...]
    checkpoints: tuple[int, ...]  # in tokens


def find_node(cache: Cache, key: bytes) -> tuple[Store, Node]:
    """The one block whose key begins with these bytes. Raises NotFoundError, RequestError."""
    found = [
        (store, node)
        for store in cache.stores.values()
        for known, node in store.index.nodes.items()
        if known.startswith(key)
    ]
    if not found:
        raise NotFoundError(
            "NO_SUCH_BLOCK", f"no stored key begins with {key.hex()}", "see `ds4ctl cache ls`"
        )
    if len(found) > 1:
        raise RequestError(
            "AMBIGUOUS_KEY", f"{len(found)} keys begin with {key.hex()}", "give more of the key"
        )
    return found[0]


def selected(cache: Cache, selection: Selection) -> Iterator[tuple[Store, Callable[[Node], bool]]]:
    """The stores that a selection touches, with the condition on their blocks; under the lock."""
    subtree: set[Node] | None = None
    only: Store | None = None
    if selection.key:
        only, node = find_node(cache, selection.key)
        subtree = set(node.below())
    now_s = cache.wall_s()
    for store in cache.stores.values():
        if not store.digest.startswith(selection.fingerprint) or only not in (None, store):
            continue
        salted = {
            node
            for root in store.index.roots.values()
            if selection.salt is None or root.salt == selection.salt
            for child in root.children
            for node in child.below()
        }
        yield store, _condition(salted, subtree, selection.idle_s, now_s)


def _condition(
    salted: set[Node], subtree: set[Node] | None, idle_s: float, now_s: float
) -> Callable[[Node], bool]:
    def wanted(node: Node) -> bool:
        if node not in salted or (subtree is not None and node not in subtree):
            return False
        return not idle_s or now_s - last_s(node) >= idle_s

    return wanted


def last_s(node: Node) -> float:
    """When a block or its checkpoint was stored, or a restore ended at it, whichever was last."""
    stored = node.checkpoint.created_s if node.checkpoint else 0.0
    return max(node.use.last_s, node.block.created_s, stored)


def prefixes(cache: Cache, selection: Selection) -> list[Prefix]:
    """The stored prefixes, most recently used first."""
    with cache.lock:
        found = [
            prefix(store, node)
            for store, wanted in selected(cache, selection)
            for node in store.index.leaves()
            if wanted(node)
        ]
    return sorted(found, key=lambda one: (-one.last_s, one.node.key))


def prefix(store: Store, node: Node) -> Prefix:
    """The prefix that ends with this node; under the lock."""
    index, way = store.index, node.way()
    sizes = [index.block_bytes(one) + index.checkpoint_bytes(one) for one in way]
    own = 0
    for one, size in zip(reversed(way), reversed(sizes), strict=True):
        if len(one.children) > 1:
            break
        own += size
    return Prefix(
        store,
        node,
        node.root.salt,
        own,
        sum(sizes),
        node.block.created_s,
        max(last_s(one) for one in way),
        sum(one.use.hits for one in way),
        sum(one.use.seconds_saved for one in way),
        tuple(sorted(name for one in way for name in one.pins)),
        tuple(one.tokens_up_to for one in way if one.checkpoint),
    )


def inspect(
    cache: Cache, key: bytes, levels: int, most: int = MOST_NODES
) -> list[tuple[Store, Node]]:
    """A block and its descendants of so many levels, parents first; all roots' for no key."""
    with cache.lock:
        if key:
            store, node = find_node(cache, key)
            level = [(store, node)]
        else:
            level = [
                (store, node)
                for store in cache.stores.values()
                for root in store.index.roots.values()
                for node in root.children
            ]
        found = list(level)
        for _ in range(levels):
            level = [(store, child) for store, node in level for child in node.children]
            if not level:
                break
            found += level
            if len(found) > most:
                raise RequestError(
                    "TOO_MUCH_TO_SHOW",
                    f"more than {most} blocks",
                    "give the key of a block further down, or fewer levels",
                )
        return found


def plan_eviction(
    cache: Cache, selection: Selection, to_bytes: int
) -> tuple[list[Victim], int, list[Prefix]]:
    """What would go: victims, how many selected records are protected, and whole prefixes."""
    with cache.lock:
        chosen = list(selected(cache, selection))
        need = max(cache.used_bytes() - to_bytes, 0) if to_bytes else None
        wanted = {id(store.index): condition for store, condition in chosen}
        victims = evict.plan(
            [cache.scene(store) for store, _ in chosen],
            need,
            lambda node: any(condition(node) for condition in wanted.values()),
        )
        gone = {(victim.node, victim.kind) for victim in victims}
        kept = 0
        if need is None:
            for store, condition in chosen:
                for node in store.index.nodes.values():
                    if condition(node):
                        kept += (node, Kind.BLOCK) not in gone
                        kept += bool(node.checkpoint) and (node, Kind.CHECKPOINT) not in gone
        owners = {id(store.index): store for store, _ in chosen}
        ends = [v for v in victims if v.kind is Kind.BLOCK and not v.node.children]
        return victims, kept, [prefix(owners[id(v.tree)], v.node) for v in ends]


def purge(
    cache: Cache, fingerprint: bytes, salt: str | None, unused: bool, dry_run: bool
) -> tuple[int, int, int]:
    """Delete for good, whatever protects it: stores, records and bytes that went.

    A salt's pages are overwritten by writing the file anew. Raises RequestError without condition.
    """
    if not fingerprint and salt is None and not unused:
        raise RequestError(
            "NOTHING_SELECTED", "nothing says what to purge", "give a fingerprint, a salt or unused"
        )
    stores, records, size = 0, 0, 0
    for number, store in list(cache.stores.items()):
        if not store.digest.startswith(fingerprint) or (unused and store.opened):
            continue
        if salt is None:
            stores += 1
            records += store.index.blocks.records + store.index.checkpoints.records
            size += store.index.disk_bytes
            if not dry_run:
                cache.delete(number)
        else:
            went, freed = _purge_salt(store, salt, dry_run)
            records, size = records + went, size + freed
            if went and not dry_run:
                _overwrite(store)
    if unused and salt is None and not fingerprint:
        stores, size = stores + len(cache.aside()), size + cache.aside_bytes
        if not dry_run:
            cache.delete_aside()
    return stores, records, size


def _overwrite(store: Store) -> None:
    try:
        store.compact()
    except NotFoundError:
        return  # the whole store went meanwhile
    except KvError as error:
        raise RefusedError(
            "NOT_OVERWRITTEN",
            "what was purged is found no more, but its bytes are in the file still: "
            f"{error.message}",
            "make room on the disk, then purge again and `ds4ctl cache compact`",
        ) from error


def _purge_salt(store: Store, salt: str, dry_run: bool) -> tuple[int, int]:
    records, size = 0, 0
    with store.lock:
        for root in list(store.index.roots.values()):
            if root.salt != salt:
                continue
            for node in [one for child in root.children for one in child.below()]:
                records += 1 + bool(node.checkpoint)
                size += store.index.block_bytes(node) + store.index.checkpoint_bytes(node)
            for child in [] if dry_run else list(root.children):
                store.forget(child)
        if not dry_run:
            store.evicted.clear()
    return records, size


def compact(cache: Cache, fingerprint: bytes) -> tuple[int, int]:
    """Write files anew without free pages; sizes before and after. Raises RefusedError."""
    before = after = 0
    for store in list(cache.stores.values()):
        if store.digest.startswith(fingerprint):
            needed = store.disk.stat().used_bytes
            if needed > cache.budget.free_bytes() - cache.budget.free_floor_bytes:
                raise RefusedError(
                    "NO_ROOM_TO_COMPACT",
                    f"the new file needs {needed} bytes beside the old one",
                    "make room on the disk",
                )
            one_before, one_after = store.compact()
            before, after = before + one_before, after + one_after
    return before, after
