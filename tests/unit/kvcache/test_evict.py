"""Which records go when room is needed: each test is a fault that another cache once had."""

from collections.abc import Callable
from pathlib import Path

import pytest
from ds4_kvcache import browse, evict, pins
from ds4_kvcache.browse import Selection
from ds4_kvcache.cache import Cache
from ds4_kvcache.disk import Kind
from ds4_kvcache.errors import RefusedError, RequestError
from ds4_kvcache.evict import Scene
from ds4_kvcache.index import Node
from ds4_kvcache.rpc import messages
from ds4_kvcache.store import Store

from tests.unit.kvcache.small_cache import (
    ANCHOR,
    LATTICE,
    OUTPUT_END,
    Clock,
    block,
    chain,
    checkpoint,
    open_cache,
    open_store,
    put,
)

HOUR_S = 3600.0


def evict_bytes(cache: Cache, count: int) -> list[tuple[Node, Kind]]:
    """Free this much, as a full cache does; what went, in order."""
    victims = evict.plan(cache.scenes(), count)
    cache.drop(victims)
    return [(victim.node, victim.kind) for victim in victims]


def test_leaves_go_first(cache: Cache, store: Store) -> None:
    """What goes of a chain goes from its end, a checkpoint before its block."""
    nodes = chain(store, 6, checkpoints=[3, 6])
    gone = evict_bytes(cache, 10**9)
    blocks = [node for node, kind in gone if kind is Kind.BLOCK]
    assert blocks == nodes[::-1]
    for node in (nodes[2], nodes[5]):
        assert gone.index((node, Kind.CHECKPOINT)) < gone.index((node, Kind.BLOCK))
    assert store.index.nodes == {}


def test_just_written_survives_a_full_cache(tmp_path: Path) -> None:
    """A record that was stored a moment ago is not the victim of the next one."""
    cache = open_cache(tmp_path, budget_bytes=16_000_000, fresh_s=60)
    store = open_store(cache)
    node: Node | None = None

    def grow() -> None:
        nonlocal node
        for seed in range(400):
            record = block(store, node, seed, 100_000)
            cache.make_room(store, len(record.data))
            node = put(store, record)

    with pytest.raises(RefusedError, match="budget is full"):
        grow()
    assert node is not None
    assert all(store.is_stored(one) for one in node.way())
    cache.close(10)


def test_a_long_prompt_does_not_evict_itself(tmp_path: Path) -> None:
    """A prompt that grows beyond the budget pushes others out, and then stops growing."""
    cache = open_cache(tmp_path, budget_bytes=20_000_000, fresh_s=0)
    store = open_store(cache)
    other = chain(store, 20, checkpoints=[20], seed=1, size=100_000)
    node: Node | None = None
    for seed in range(600):
        record = block(store, node, seed, 100_000)
        if node is not None:
            cache.lease(store, node)  # a request is at work on it
        try:
            cache.make_room(store, len(record.data))
        except RefusedError:
            break
        node = put(store, record)
    assert node is not None
    assert node.depth > 100, "there was room for more of it"
    assert all(store.is_stored(one) for one in node.way())
    assert not store.is_stored(other[-1])
    cache.close(10)


def test_short_anchor_beats_long_cold_tail(cache: Cache, store: Store, clock: Clock) -> None:
    """A small system prompt that is used stays when a long prompt that is not has to go."""
    anchor = chain(store, 8, checkpoints=[8], seed=1, kind=ANCHOR)[-1]
    clock.now_s += 24 * HOUR_S
    tail = chain(store, 200, checkpoints=[200], seed=2)
    clock.now_s += 24 * HOUR_S
    for _ in range(3):
        store.used(anchor, 1024)
    evict_bytes(cache, cache.used_bytes() // 2)
    assert store.is_stored(anchor)
    assert anchor.checkpoint is not None
    assert not store.is_stored(tail[-1])


def test_prefix_in_flight_is_protected(cache: Cache, store: Store) -> None:
    """A leased prefix keeps its blocks and its checkpoint, and loses them when it is released."""
    nodes = chain(store, 5, checkpoints=[2, 5])
    lease = cache.lease(store, nodes[2])  # it resumes at the checkpoint of block 2
    evict_bytes(cache, 10**9)
    assert [store.is_stored(node) for node in nodes] == [True, True, True, False, False]
    assert nodes[1].checkpoint is not None
    cache.release(lease.id)
    evict_bytes(cache, 10**9)
    assert store.index.nodes == {}


def test_stale_hot_prefix_decays(cache: Cache, store: Store, clock: Clock) -> None:
    """A prefix that was used a hundred times a month ago goes before one used once today."""
    hot = chain(store, 10, checkpoints=[10], seed=1)[-1]
    for _ in range(100):
        store.used(hot, 1280)
    clock.now_s += 30 * 24 * HOUR_S
    warm = chain(store, 10, checkpoints=[10], seed=2)[-1]
    store.used(warm, 1280)
    evict_bytes(cache, cache.used_bytes() // 3)
    assert not store.is_stored(hot)
    assert store.is_stored(warm)


def test_dead_tail_goes_first(cache: Cache, store: Store, clock: Clock) -> None:
    """Blocks that no checkpoint ends go before any checkpoint, however new they are."""
    old = chain(store, 10, checkpoints=[10], seed=1)
    clock.now_s += HOUR_S
    tail = chain(store, 5, below=old[-1], seed=2)
    gone = evict_bytes(cache, 4 * store.index.block_bytes(tail[0]))
    assert gone == [(node, Kind.BLOCK) for node in tail[:0:-1]]


def test_inner_checkpoint_costs_what_the_next_above_does_not_save(
    cache: Cache, store: Store
) -> None:
    """Of two checkpoints on one chain, the one close below another is worth less."""
    nodes = chain(store, 100, checkpoints=[49, 50, 100], kind=LATTICE)
    judge = evict.judge(cache.scene(store))
    assert judge(nodes[49])[0] < judge(nodes[48])[0] / 10


def test_pins_hold_until_their_time(cache: Cache, store: Store, clock: Clock) -> None:
    """A pinned prefix stays with its checkpoint while the pin holds, and not a second longer."""
    nodes = chain(store, 3, checkpoints=[3])
    pins.pin(cache, store, nodes[-1], "mine", 100)
    evict_bytes(cache, 10**9)
    assert nodes[-1].checkpoint is not None
    clock.now_s += 99
    pins.end_pins(cache)
    assert evict_bytes(cache, 10**9) == []
    clock.now_s += 2
    pins.end_pins(cache)
    evict_bytes(cache, 10**9)
    assert store.index.nodes == {}


def test_uses_of_what_went_count_above(cache: Cache, store: Store) -> None:
    """When a leaf goes, its parent takes over its uses: it served those restores too."""
    nodes = chain(store, 3, checkpoints=[2, 3])
    store.used(nodes[2], 384)
    store.used(nodes[2], 384)
    store.forget(nodes[2])
    assert nodes[1].use.hits == 2
    assert nodes[1].use.seconds_saved == pytest.approx(2 * 3.84)


def test_lattice_thins_with_age(cache: Cache, store: Store, clock: Clock) -> None:
    """Of a long prompt's steps, every fourth is left after an hour, and its ends always."""
    nodes = chain(store, 256, checkpoints=range(32, 257, 32), kind=LATTICE)
    put(store, checkpoint(nodes[255], OUTPUT_END))

    def steps() -> list[int]:
        return [node.tokens_up_to for node in nodes if node.checkpoint]

    cache.thin()
    assert steps() == list(range(4096, 32769, 4096))
    clock.now_s += 2 * HOUR_S
    cache.thin()
    assert steps() == [16_384, 32_768]
    clock.now_s += 30 * HOUR_S
    cache.thin()
    assert steps() == [32_768]


def test_two_turn_ends_are_kept(cache: Cache, store: Store) -> None:
    """A conversation keeps the ends of its last two turns, and where another one parts from it."""
    nodes = chain(store, 10, checkpoints=[2, 4, 6, 8, 10])
    chain(store, 1, seed=9, below=nodes[3], checkpoints=[1])
    cache.thin()
    ends = [node.depth for node in nodes if node.checkpoint]
    assert ends == [4, 8, 10]


def test_dry_run_drops_nothing(cache: Cache, store: Store) -> None:
    """A plan says what would go, whole prefixes too, and leaves all as it is."""
    nodes = chain(store, 4, checkpoints=[4])
    victims, kept, prefixes = browse.plan_eviction(cache, Selection(), 0)
    assert len(victims) == 5 and kept == 0
    assert [one.node for one in prefixes] == [nodes[-1]]
    assert len(store.index.nodes) == 4


def test_eviction_by_key_age_and_salt(cache: Cache, store: Store, clock: Clock) -> None:
    """Conditions hold together, and what they do not name stays."""
    old = chain(store, 2, seed=1)
    clock.now_s += 100
    new = chain(store, 2, seed=2)
    other = chain(store, 2, seed=3, salt="s")
    for selection, gone in (
        (Selection(idle_s=50, salt="s"), []),
        (Selection(idle_s=50), old),
        (Selection(key=new[1].key[:6]), new[1:]),
        (Selection(salt="s"), other),
        (Selection(fingerprint=b"\0"), []),
    ):
        victims, _, _ = browse.plan_eviction(cache, selection, 0)
        assert {victim.node for victim in victims} == set(gone)
        cache.drop(victims)
    assert set(store.index.nodes.values()) == {new[0]}


def test_many_blocks_are_judged_by_one_plan(
    cache: Cache, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To show a tree costs one look at the store, not one for each of its blocks."""
    chain(store, 5)
    scenes: list[Scene] = []
    judge = evict.judge

    def counted(scene: Scene) -> Callable[[Node], tuple[float, str]]:
        scenes.append(scene)
        return judge(scene)

    monkeypatch.setattr(evict, "judge", counted)
    shown = list(messages.block_nodes(cache, browse.inspect(cache, b"", 10), brief=True))
    assert (len(shown), len(scenes)) == (5, 1)
    with pytest.raises(RequestError, match="more than 3 blocks"):
        browse.inspect(cache, b"", 10, most=3)


def test_counters_are_sums(cache: Cache, store: Store) -> None:
    """After eviction the counters are what counting everything anew gives."""
    chain(store, 20, checkpoints=[10, 20])
    evict_bytes(cache, cache.used_bytes() // 2)
    assert store.index.problems() == []
    assert 0 < cache.used_bytes() == store.index.disk_bytes
