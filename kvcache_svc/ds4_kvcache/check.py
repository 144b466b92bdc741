"""Whether what is stored is what was put: structure, checksums, and the slow check when idle.

Repair is deletion, of what is bad and of what hangs on it. Called by `rpc` and by `main`.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

from ds4_runtime.kv_keys import BLOCK_TOKEN_BYTES, block_key

from ds4_kvcache.browse import Selection, selected
from ds4_kvcache.cache import Cache
from ds4_kvcache.disk import PART_BYTES, Kind
from ds4_kvcache.errors import KvError
from ds4_kvcache.index import Node
from ds4_kvcache.load import is_sound
from ds4_kvcache.store import Store

# Between two reports to whoever watches.
_REPORT_RECORDS = 100


@dataclass(slots=True)
class Report:
    """How far a check is. `findings` are those since the report before."""

    checked: int = 0
    total: int = 0
    bad: int = 0
    findings: list[str] = field(default_factory=list)
    problem: KvError | None = None  # why what came last is not on disk, and was not checked
    done: bool = False


def verify(
    cache: Cache, selection: Selection, *, structure_only: bool, repair: bool
) -> Iterator[Report]:
    """Check what is selected, and tell now and then how far that is."""
    with cache.lock:
        chosen = [
            (store, [node for node in store.index.nodes.values() if wanted(node)])
            for store, wanted in selected(cache, selection)
        ]
    report = Report(total=sum(1 + bool(node.checkpoint) for _, nodes in chosen for node in nodes))
    for store, nodes in chosen:
        store.writer.flush(60.0)
        report.problem = report.problem or store.writer.problem
        for node, kind, finding in _structure(store, nodes):
            report.bad += 1
            report.findings.append(finding)
            if repair and node is not None:
                store.damaged(node, kind, finding)
    if structure_only:
        report.checked = report.total
    else:
        for store, nodes in chosen:
            yield from _records(store, nodes, report, repair)
    report.done = True
    yield report


def _records(store: Store, nodes: list[Node], report: Report, repair: bool) -> Iterator[Report]:
    for node in nodes:
        for kind in Kind:
            if kind is Kind.CHECKPOINT and node.checkpoint is None:
                continue
            report.checked += 1
            if not is_sound(store, node, kind):
                report.bad += 1
                report.findings.append(f"the {kind.name.lower()} of {_name(node)} is damaged")
                if repair:
                    store.damaged(node, kind, "it does not match its checksum")
            if report.checked % _REPORT_RECORDS == 0:
                yield report
                report.findings = []


def _structure(store: Store, nodes: list[Node]) -> Iterator[tuple[Node | None, Kind, str]]:
    """What is wrong with the tree and the tables, with the node to delete where there is one."""
    with store.lock:
        for problem in store.index.problems():
            yield None, Kind.BLOCK, problem
        expected: dict[tuple[bytes, Kind], int] = {}
        for node in nodes:
            if node.block_frame is None and store.is_stored(node):
                expected[node.key, Kind.BLOCK] = node.block.stored_bytes
                if node.checkpoint is not None and node.checkpoint_frame is None:
                    expected[node.key, Kind.CHECKPOINT] = node.checkpoint.stored_bytes
    with store.reading():
        parts: dict[tuple[bytes, Kind], int] = {}
        for key, kind, _ in store.disk.part_keys():
            parts[key, kind] = parts.get((key, kind), 0) + 1
        tokens = store.disk.tokens([node.key for node in nodes if node.tokens is None])
    by_key = {node.key: node for node in nodes}
    for (key, kind), stored_bytes in expected.items():
        node = by_key[key]
        if parts.get((key, kind), 0) != -(-stored_bytes // PART_BYTES):
            if store.is_stored(node):
                yield node, kind, f"the {kind.name.lower()} of {_name(node)} is not complete"
        elif kind is Kind.BLOCK:
            packed = node.tokens or tokens.get(key, b"")
            sound = len(packed) == BLOCK_TOKEN_BYTES and block_key(node.parent.key, packed) == key
            if not sound and store.is_stored(node):
                yield node, kind, f"the tokens of {_name(node)} are not those of its key"
    with store.lock:
        strays = sum(
            not store.writer.waits(key) and not store.has(key, kind) for key, kind in parts
        )
    if strays:
        yield None, Kind.BLOCK, f"the parts of {strays} records belong to nothing"


def _name(node: Node) -> str:
    return f"block {node.key.hex()[:16]} ({node.tokens_up_to} tokens)"


class Scrub:
    """Reads everything once in a while, a little at a time, when nobody wants the disk."""

    # A tick reads this much: 20 MB/s at one tick in 10 s.
    TICK_BYTES = 200_000_000
    PASS_S = 7 * 24 * 3600.0

    def __init__(self, cache: Cache) -> None:
        self._cache = cache

    def tick(self) -> int:
        """Read on where the last tick ended; the records that were bad and are gone."""
        bad = 0
        for store in list(self._cache.stores.values()):
            if store.writer.idle and not self._cache.leases():
                bad += self._store(store)
        return bad

    def _store(self, store: Store) -> int:
        counters, now_s = store.counters, self._cache.wall_s()
        if not counters.scrub_at and now_s - counters.scrubbed_s < self.PASS_S:
            return 0
        at = bytes.fromhex(counters.scrub_at)
        with store.lock:
            keys = sorted(key for key in store.index.nodes if key > at)
        bad = size = 0
        for key in keys:
            with store.lock:
                node = store.index.nodes.get(key)
            if node is None:
                continue
            for kind in Kind:
                if (kind is Kind.BLOCK or node.checkpoint) and not is_sound(store, node, kind):
                    store.damaged(node, kind, "it does not match its checksum")
                    bad += 1
            size += node.block.stored_bytes
            counters.scrub_at = key.hex()
            if size > self.TICK_BYTES:
                return bad
        counters.scrub_at, counters.scrubbed_s = "", now_s
        return bad
