"""The store against a dict: any sequence of what can happen leaves both with the same records.

Hypothesis makes the sequences: putting, looking up, evicting, pinning, leasing, deleting, closing
and opening again, and dying with nothing but what was committed.
"""

import shutil
import tempfile
from pathlib import Path

import pytest
from ds4_kvcache import browse, pins
from ds4_kvcache.browse import Selection
from ds4_kvcache.cache import Cache
from ds4_kvcache.check import verify
from ds4_kvcache.disk import Kind
from ds4_kvcache.errors import RefusedError, RequestError
from ds4_kvcache.index import Node, Root
from ds4_kvcache.leases import Lease
from ds4_kvcache.lookup import find
from ds4_kvcache.record import Record
from ds4_kvcache.store import Put, Store
from ds4_runtime.kv_keys import unpack_tokens
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule

from tests.unit.kvcache.small_cache import (
    Clock,
    block,
    checkpoint,
    data_of,
    open_cache,
    open_store,
    put,
)

BLOCK_SIZE, CHECKPOINT_SIZE = 3000, 70_000  # the latter takes two parts
SALTS = st.sampled_from(["", "alice"])
# A checkpoint's kind for each block of a chain; 0: none.
ENDS = st.lists(st.sampled_from([0, 0, 1, 2, 4]), min_size=1, max_size=6)


class StoreMachine(RuleBasedStateMachine):
    """`model` has what must be stored: key to parent key, and whether there is a checkpoint."""

    keys: Bundle[bytes] = Bundle("keys")

    @initialize()
    def begin(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="ds4-", dir="/tmp"))
        self.clock = Clock()
        self.cache: Cache = open_cache(self.folder, self.clock)
        self.store: Store = open_store(self.cache)
        self.model: dict[bytes, tuple[bytes, bool]] = {}
        self.pins: dict[str, bytes] = {}
        self.leases: list[Lease] = []

    def node(self, key: bytes) -> Node | None:
        return self.store.index.nodes.get(key) if key in self.model else None

    # What the daemon does.

    @rule(target=keys, seed=st.integers(0, 2), salt=SALTS, ends=ENDS)
    def put_first(self, seed: int, salt: str, ends: list[int]) -> bytes:
        return self.put_chain(None, seed, salt, ends)

    @rule(target=keys, parent=keys, seed=st.integers(0, 2), ends=ENDS)
    def put_next(self, parent: bytes, seed: int, ends: list[int]) -> bytes:
        node = self.node(parent)
        return self.put_chain(node, seed, node.root.salt if node else "", ends)

    @rule(target=keys, parent=keys, seed=st.integers(0, 2), ends=ENDS)
    def put_more(self, parent: bytes, seed: int, ends: list[int]) -> bytes:
        node = self.node(parent)
        return self.put_chain(node, seed + 3, node.root.salt if node else "", ends)

    def put_chain(self, node: Node | None, seed: int, salt: str, ends: list[int]) -> bytes:
        """Blocks one below the other; the numbers say which get a checkpoint and of what kind."""
        for kind in ends:
            record = block(self.store, node, seed, BLOCK_SIZE, salt)
            node = put(self.store, record, salt)
            known = self.model.get(node.key, (record.parent, False))
            self.model[node.key] = (known[0], known[1] or kind > 0)
            if kind:
                put(self.store, checkpoint(node, kind, CHECKPOINT_SIZE), salt)
        assert node is not None
        return node.key

    @rule(key=keys)
    def refuse_what_hangs_on_nothing(self, key: bytes) -> None:
        """A block whose parent is not stored is refused, and so is one with the wrong key."""
        lost = Node(b"\1" * 32, Root(b"\2" * 32, "x"), 1, Record(3, 0, 1, 1, 0, 0.0))
        with pytest.raises(RefusedError, match="hangs on"):
            put(self.store, block(self.store, lost, 1))
        if (node := self.node(key)) is not None:
            good = block(self.store, node, 1)
            wrong = Put(key[::-1], *[getattr(good, name) for name in Put.__slots__[1:]])
            with pytest.raises(RequestError, match="does not follow"):
                put(self.store, wrong, node.root.salt)

    @rule(key=keys)
    def restore(self, key: bytes) -> None:
        """A lookup finds the deepest checkpoint, and its way reads back byte for byte."""
        if (node := self.node(key)) is None:
            return
        way, salt = node.way(), node.root.salt
        tokens = [t for one in way for t in unpack_tokens(self.store.tokens(one))]
        found = find(self.cache, self.store, salt, [*tokens, 1], 0, 0)
        assert found.stored_tokens == len(tokens)
        resumable = [one for one in way if self.model[one.key][1]]
        assert found.node is (resumable[-1] if resumable else None)
        for one in way:
            read = self.store.read(one, Kind.BLOCK)[1]
            assert read == data_of(one.key, Kind.BLOCK, BLOCK_SIZE)
        if found.node is not None:
            read = self.store.read(found.node, Kind.CHECKPOINT)[1]
            assert read == data_of(found.node.key, Kind.CHECKPOINT, CHECKPOINT_SIZE)
            self.store.used(found.node, found.resume_tokens)

    @rule(key=keys)
    def lease(self, key: bytes) -> None:
        if len(self.leases) > 2:
            self.cache.release(self.leases.pop(0).id)
        node = self.node(key)
        if node is not None and node.checkpoint is not None:
            self.leases.append(self.cache.lease(self.store, node))

    @rule(key=keys)
    def invalidate(self, key: bytes) -> None:
        if (node := self.node(key)) is not None:
            gone = {one.key for one in node.below()}
            assert self.store.forget(node) >= len(gone)
            self.model = {k: v for k, v in self.model.items() if k not in gone}
            self.forget_protection(gone)

    # What time and people do.

    @rule(key=keys, name=st.sampled_from(["a", "b"]))
    def pin(self, key: bytes, name: str) -> None:
        if self.pins.get(name) == key:
            del self.pins[name]
            pins.unpin(self.cache, name)
        elif (node := self.node(key)) is not None:
            pins.pin(self.cache, self.store, node, name, 0)
            self.pins[name] = key

    @rule(share=st.floats(0, 1))
    def evict(self, share: float) -> None:
        """Evict down to a share: leaves first, and nothing that is pinned or leased."""
        before = dict(self.model)
        target = max(int(share * self.cache.used_bytes()), 1)
        victims, _, _ = browse.plan_eviction(self.cache, Selection(), target)
        assert len(victims) == len({(one.node, one.kind) for one in victims})
        self.cache.drop(victims)
        self.evicted(before)
        held = {one.node.key for one in self.leases} | set(self.pins.values())
        for key in held:
            assert key in self.model, "what is held was evicted"
        for lease in self.leases:
            assert self.model[lease.node.key][1], "the checkpoint of a lease was evicted"
        if len(victims) and self.cache.used_bytes() > target:
            # Then all that is left is held, or on the way to what is held.
            ways = {one.key for key in held for one in self.store.index.nodes[key].way()}
            assert set(self.model) <= ways

    @rule(hours=st.integers(0, 100))
    def grow_old(self, hours: int) -> None:
        """Thinning drops checkpoints, never a block and never the last one of a chain."""
        self.clock.now_s += 3600 * hours
        before = dict(self.model)
        ends = {n.key for n in self.store.index.leaves() if n.checkpoint_at_or_above()}
        self.cache.thin()
        self.evicted(before)
        assert set(before) == set(self.model)
        for key in ends:
            assert self.store.index.nodes[key].checkpoint_at_or_above() is not None

    def evicted(self, before: dict[bytes, tuple[bytes, bool]]) -> None:
        """Take over what is left, which is a part of what was there."""
        nodes = self.store.index.nodes
        self.model = {k: (v[0], nodes[k].checkpoint is not None) for k, v in before.items()
                      if k in nodes}  # fmt: skip
        assert set(nodes) == set(self.model)
        for key, (parent, kept) in self.model.items():
            assert before[key][1] or not kept
            assert parent in self.model or parent in self.store.index.roots
        self.forget_protection(set(before) - set(self.model))

    def forget_protection(self, gone: set[bytes]) -> None:
        for lease in [one for one in self.leases if one.node.key in gone]:
            self.leases.remove(lease)
            self.cache.release(lease.id)
        for name in [name for name, key in self.pins.items() if key in gone]:
            del self.pins[name]

    # What happens to processes.

    @rule(how=st.sampled_from(["stop", "die", "compact"]))
    def restart(self, how: str) -> None:
        (report,) = verify(self.cache, Selection(), structure_only=True, repair=False)
        assert report.findings == []
        if how == "compact":
            self.store.compact()
        elif how == "stop":
            self.cache.close(10)
            self.open_again()
        else:
            self.die()

    def die(self) -> None:
        """Go on with a copy of what was committed, as after SIGKILL."""
        assert self.store.writer.flush(10)
        aside = self.folder.with_name(self.folder.name + "-copy")
        shutil.copytree(self.folder, aside)
        self.cache.close(10)
        shutil.rmtree(self.folder)
        aside.rename(self.folder)
        self.open_again()

    def open_again(self) -> None:
        self.cache = open_cache(self.folder, self.clock)
        self.store = open_store(self.cache)
        self.leases = []
        assert set(self.store.index.nodes) == set(self.model)

    @invariant()
    def same(self) -> None:
        if not hasattr(self, "model"):
            return
        assert self.store.index.problems() == []
        stored = {
            key: (node.parent.key, node.checkpoint is not None)
            for key, node in self.store.index.nodes.items()
        }
        assert stored == self.model
        assert {name: key for name, (key, _) in self.store.pins.items()} == self.pins

    def teardown(self) -> None:
        if hasattr(self, "cache"):
            self.cache.close(10)
            shutil.rmtree(self.folder)


TestStoreMachine = StoreMachine.TestCase
TestStoreMachine.settings = settings(
    max_examples=40,
    stateful_step_count=50,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
