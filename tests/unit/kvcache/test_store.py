"""What a store takes and refuses, how it opens, and what it does with what it finds damaged."""

import dataclasses
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import lmdb
import pytest
from ds4_kvcache import browse, check, codec, pins
from ds4_kvcache.browse import Selection
from ds4_kvcache.cache import Cache
from ds4_kvcache.counters import Counters
from ds4_kvcache.disk import Changes, Kind
from ds4_kvcache.errors import DamagedError, NotFoundError, RefusedError, RequestError
from ds4_kvcache.identity import Identity
from ds4_kvcache.lookup import Miss, find
from ds4_kvcache.meta_page import check_length
from ds4_kvcache.store import Store

from tests.unit.kvcache.small_cache import (
    IDENTITY,
    Clock,
    block,
    chain,
    checkpoint,
    open_cache,
    open_store,
    prompt,
    put,
)


def reason(cache: Cache, store: Store, tokens: list[int], salt: str = "") -> Miss:
    return find(cache, store, salt, tokens, 0, 0).miss


def test_records_that_contradict_themselves_are_refused(store: Store) -> None:
    """A wrong key, depth, salt, parent or number of tokens is told, and nothing is stored."""
    node = chain(store, 1)[0]
    good = block(store, node, 5)
    for change, why in (
        ({"key": bytes(32)}, "KEY_MISMATCH"),
        ({"token_ids": [*good.token_ids[:-1], 1]}, "KEY_MISMATCH"),
        ({"token_ids": good.token_ids[:-1]}, "BAD_RECORD"),
        ({"token_ids": ()}, "BAD_RECORD"),
        ({"depth": 3}, "BAD_RECORD"),
        ({"parent": b""}, "BAD_RECORD"),
    ):
        with pytest.raises(RequestError) as error:
            put(store, dataclasses.replace(good, **change))
        assert error.value.reason == why
    with pytest.raises(RequestError) as error:
        put(store, good, "another salt")
    assert error.value.reason == "SALT_MISMATCH"
    with pytest.raises(RefusedError) as refused:
        put(store, dataclasses.replace(checkpoint(node), key=bytes(32)))
    assert refused.value.reason == "PARENT_MISSING"
    assert len(store.index.nodes) == 1


def test_first_writer_wins(store: Store) -> None:
    """A record that is there already is not written again, whatever comes in its place."""
    record = block(store, None, 1)
    assert store.put(record, "", codec.compress(record.data))
    other = dataclasses.replace(record, data=b"other", crc32=0)
    assert not store.put(other, "", codec.compress(other.data))
    assert store.read(store.node(record.key), Kind.BLOCK)[1] == record.data
    assert (store.counters.puts, store.counters.duplicates) == (1, 1)


def test_reasons_of_misses(cache: Cache, store: Store) -> None:
    """Each way to miss has its reason, and what is evicted is told from what never was."""
    tokens = prompt(chain(store, 4, checkpoints=[2, 4]), store)
    assert reason(cache, store, tokens) is Miss.NONE
    assert reason(cache, store, tokens[:200]) is Miss.NO_CHECKPOINT
    assert reason(cache, store, tokens, "other") is Miss.SALT
    assert reason(cache, store, [*tokens[:300], 9, *tokens[301:]]) is Miss.DIVERGED
    assert reason(cache, store, tokens + tokens) is Miss.COLD
    other = open_store(cache, Identity('{"arch":"other"}', 1, 0))
    assert reason(cache, other, tokens) is Miss.FINGERPRINT
    victims, _, _ = browse.plan_eviction(cache, Selection(), 0)
    cache.drop(victims)
    assert reason(cache, store, tokens) is Miss.EVICTED


def test_lookup_keeps_within_what_is_wanted(cache: Cache, store: Store) -> None:
    """The last token is never restored, nor more than is wanted, nor less than is live."""
    tokens = prompt(chain(store, 4, checkpoints=[2, 3, 4]), store)
    assert find(cache, store, "", tokens, 0, 0).resume_tokens == 512
    assert find(cache, store, "", tokens[:512], 0, 0).resume_tokens == 384
    assert find(cache, store, "", tokens, 511, 0).resume_tokens == 384
    assert find(cache, store, "", tokens, 0, 511).resume_tokens == 512
    assert find(cache, store, "", tokens, 0, 512).node is None
    assert find(cache, store, "", [], 0, 0).node is None


def test_changed_tokens_are_a_damaged_block(cache: Cache, store: Store) -> None:
    """A block whose stored tokens are not those of its key is never found, and is deleted."""
    nodes = chain(store, 4, checkpoints=[2, 4])
    tokens = prompt(nodes, store)
    assert store.writer.flush(10)
    changes = {nodes[2].key: bytes(512)}
    store.disk.write(Changes(tokens=changes))
    assert find(cache, store, "", tokens, 0, 0).resume_tokens == 256
    assert not store.is_stored(nodes[2]) and not store.is_stored(nodes[3])
    assert store.counters.corruptions == 1


def test_three_damages_make_read_only(cache: Cache, store: Store) -> None:
    """A disk that damages records again and again gets no more of them, and serves the rest."""
    nodes = chain(store, 5)
    for node in nodes[:1:-1]:
        store.damaged(node, Kind.BLOCK, "")
    assert not store.writable
    with pytest.raises(RefusedError, match="damaged"):
        cache.make_room(store, 100)
    assert store.read(nodes[0], Kind.BLOCK)[1]


def test_quarantine_outlives_a_restart(cache: Cache, store: Store, clock: Clock) -> None:
    """What was set aside is found by no lookup and takes nothing, until it is evicted."""
    nodes = chain(store, 3, checkpoints=[1, 3])
    tokens = prompt(nodes, store)
    store.quarantine(nodes[1])
    cache.close(10)
    again = open_cache(cache.budget.folder, clock)
    store = open_store(again)
    assert find(again, store, "", tokens, 0, 0).resume_tokens == 128
    assert store.node(nodes[2].key).depth == 3
    with pytest.raises(RefusedError) as error:
        put(store, block(store, store.node(nodes[1].key), 77))
    assert error.value.reason == "QUARANTINED"
    again.close(10)


def test_leases_end(cache: Cache, store: Store) -> None:
    """A lease ends when it is released, and by itself when its daemon died."""
    node = chain(store, 1, checkpoints=[1])[0]
    lease = cache.lease(store, node)
    assert cache.renew(lease.id, store) is lease
    cache.release(lease.id)
    cache.release(lease.id)
    with pytest.raises(NotFoundError):
        cache.renew(lease.id, store)
    lease = cache.lease(store, node)
    lease.until_s -= 31
    assert cache.leases() == []
    with pytest.raises(NotFoundError):
        cache.renew(lease.id, store)


def test_layout_is_a_part_of_identity(cache: Cache, store: Store) -> None:
    """One fingerprint with another layout or block size is refused, with the way out."""
    for other in (
        dataclasses.replace(IDENTITY, layout_version=2),
        dataclasses.replace(IDENTITY, block_bytes=1),
    ):
        with pytest.raises(RequestError, match="in what is stored") as error:
            open_store(cache, other)
        assert error.value.reason == "LAYOUT_MISMATCH"
    with pytest.raises(RequestError) as error:
        cache.open(IDENTITY, bytes(32), 0)
    assert error.value.reason == "FINGERPRINT_MISMATCH"
    odd = dataclasses.replace(IDENTITY, fingerprint_json='{"a": 1}')
    with pytest.raises(RequestError) as error:
        cache.open(odd, bytes(32), 0)
    assert error.value.reason == "FINGERPRINT_NOT_CANONICAL"


def test_daily_writes_end(tmp_path: Path, clock: Clock) -> None:
    """When the day's writes are spent nothing is taken, and the next day something is."""
    cache = open_cache(tmp_path, clock, daily_bytes=1_000_000)
    store = open_store(cache)
    chain(store, 10, size=100_000)
    assert store.writer.flush(10)
    cache.count_writes()
    assert 500_000 < cache.writes.today_bytes() < 1_000_000
    with pytest.raises(RefusedError) as error:
        cache.make_room(store, 600_000)
    assert error.value.reason == "WRITE_BUDGET_SPENT"
    cache.close(10)
    again = open_cache(tmp_path, clock, daily_bytes=1_000_000)
    store = open_store(again)
    with pytest.raises(RefusedError):
        again.make_room(store, 600_000)
    clock.now_s += 25 * 3600
    again.make_room(store, 600_000)
    again.close(10)


def test_damaged_store_is_set_aside(cache: Cache, store: Store, clock: Clock) -> None:
    """A file that is cut short is never mapped: it is moved away and a new store begun."""
    tokens = prompt(chain(store, 3, checkpoints=[3], size=100_000), store)
    file = store.folder / "data.mdb"
    cache.close(10)
    with file.open("r+b") as opened:
        opened.truncate(file.stat().st_size // 2)
    with pytest.raises(DamagedError):
        check_length(file)
    again = open_cache(cache.budget.folder, clock)
    assert again.stores == {}
    store = open_store(again)
    assert find(again, store, "", tokens, 0, 0).node is None
    assert len(list(cache.budget.folder.glob("*.corrupt-*"))) == 1
    for dry_run in (True, False):
        stores, _, size = browse.purge(again, b"", None, True, dry_run)
        assert stores == 1 and size > 50_000
    assert browse.purge(again, b"", None, True, False) == (0, 0, 0)
    assert list(cache.budget.folder.glob("*.corrupt-*")) == []
    again.close(10)


def test_store_that_killed_its_process_is_set_aside(
    cache: Cache, store: Store, clock: Clock
) -> None:
    """A store whose opening did not end last time is not opened again: no crash loop."""
    chain(store, 1)
    cache.close(10)
    (store.folder / "opening").touch()
    again = open_cache(cache.budget.folder, clock)
    assert open_store(again).index.nodes == {}
    again.close(10)


def test_orphans_and_damaged_nodes_go_at_start(cache: Cache, store: Store, clock: Clock) -> None:
    """What hangs on nothing, or does not match its checksum, is deleted with all its parts."""
    nodes = chain(store, 6, checkpoints=[6])
    cache.close(10)
    with lmdb.open(str(store.folder), max_dbs=8) as env:
        table = env.open_db(b"node")
        with env.begin(write=True) as txn:
            value = bytearray(txn.get(nodes[3].key, db=table) or b"")
            value[40] ^= 1
            txn.put(nodes[3].key, bytes(value), db=table)
    again = open_cache(cache.budget.folder, clock)
    store = open_store(again)
    assert set(store.index.nodes) == {node.key for node in nodes[:3]}
    assert store.writer.flush(10)
    (report,) = check.verify(again, Selection(), structure_only=True, repair=False)
    assert report.findings == []
    again.close(10)


def test_verify_finds_and_repairs(cache: Cache, store: Store) -> None:
    """A frame that was changed on disk is found, told, and on request deleted."""
    nodes = chain(store, 4, checkpoints=[2, 4])
    assert store.writer.flush(10)
    changed = codec.compress(b"something else")
    frames: dict[tuple[bytes, Kind], bytes | None] = {(nodes[1].key, Kind.CHECKPOINT): changed}
    store.disk.write(Changes(frames=frames))
    *_, last = check.verify(cache, Selection(), structure_only=False, repair=True)
    assert (last.checked, last.total, last.bad) == (6, 6, 1)
    assert "checkpoint" in last.findings[0]
    assert nodes[1].checkpoint is None and store.is_stored(nodes[1])
    *_, last = check.verify(cache, Selection(), structure_only=False, repair=False)
    assert last.bad == 0


def test_scrub_reads_everything_once_a_week(cache: Cache, store: Store, clock: Clock) -> None:
    """The slow check finds what nobody asked for, and then rests for a week."""
    nodes = chain(store, 3)
    assert store.writer.flush(10)
    scrub = check.Scrub(cache)
    assert scrub.tick() == 0
    frames: dict[tuple[bytes, Kind], bytes | None] = {(nodes[2].key, Kind.BLOCK): b"noise"}
    store.disk.write(Changes(frames=frames))
    assert scrub.tick() == 0, "a pass has just ended"
    clock.now_s += 8 * 24 * 3600
    assert scrub.tick() == 1
    assert not store.is_stored(nodes[2])


def test_purge_of_a_salt_leaves_no_trace(cache: Cache, store: Store) -> None:
    """What a salt had, its name included, is in no file afterwards; the rest is."""
    chain(store, 2, seed=1)
    chain(store, 2, seed=2, salt="very-secret-salt")
    assert store.writer.flush(10)
    assert b"very-secret-salt" in (store.folder / "data.mdb").read_bytes()
    browse.purge(cache, b"", "very-secret-salt", False, False)
    assert b"very-secret-salt" not in (store.folder / "data.mdb").read_bytes()
    assert len(store.index.nodes) == 2
    with pytest.raises(RequestError):
        browse.purge(cache, b"", None, False, False)


def test_compaction_gives_pages_back_while_readers_read(cache: Cache, store: Store) -> None:
    """The file shrinks to what it holds, and reads that go on meanwhile see the right bytes."""
    keep = chain(store, 3, seed=1, size=200_000)
    store.forget(chain(store, 60, seed=2, size=200_000)[0])
    assert store.writer.flush(10)
    ended, wrong = threading.Event(), []

    def read() -> None:
        while not ended.is_set():
            for node in keep:
                record, data = store.read(node, Kind.BLOCK)
                if len(data) != record.raw_bytes:
                    wrong.append(node)

    readers = [threading.Thread(target=read) for _ in range(3)]
    for one in readers:
        one.start()
    before, after = store.compact()
    ended.set()
    for one in readers:
        one.join()
    assert wrong == []
    assert after < before / 5
    chain(store, 3, seed=3)
    assert store.writer.flush(10)


def test_compactions_wait_for_each_other(store: Store) -> None:
    """Several at once, as by hand and of itself, leave one whole file and its store open."""
    nodes = chain(store, 20, size=200_000)
    with ThreadPoolExecutor(4) as pool:
        for before, after in pool.map(lambda _: store.compact(), range(12)):
            assert before >= after > 20 * 200_000 / 2
    assert not store.broken
    assert all(store.read(node, Kind.BLOCK)[1] for node in nodes)


def test_a_store_is_opened_once_it_is_deleted(
    cache: Cache, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A daemon that comes while its store is purged gets a new one, not files that go."""
    opened: list[Store] = []
    daemon = threading.Thread(target=lambda: opened.append(open_store(cache)))

    def rmtree(folder: Path, *, ignore_errors: bool) -> None:
        monkeypatch.undo()
        daemon.start()
        daemon.join(0.2)
        shutil.rmtree(folder, ignore_errors=ignore_errors)

    monkeypatch.setattr(shutil, "rmtree", rmtree)
    browse.purge(cache, store.digest[:4], None, False, False)
    daemon.join()
    assert opened != [store] and not opened[0].broken
    chain(opened[0], 2)


def test_refused_record_leaves_no_salt_behind(store: Store) -> None:
    """The name of a salt is kept with its first block, and goes with its last."""
    record = block(store, None, 1, salt="s")
    store.check(record, "s")
    assert store.index.roots == {}
    node = put(store, record, "s")
    assert [root.salt for root in store.index.roots.values()] == ["s"]
    store.forget(node)
    assert store.index.roots == {}


def test_pins_go_with_their_blocks(cache: Cache, store: Store, clock: Clock) -> None:
    """A pin on a block that was found damaged is gone, also after a restart."""
    node = chain(store, 1)[0]
    pins.pin(cache, store, node, "mine", 0)
    store.damaged(node, Kind.BLOCK, "")
    assert store.pins == {}
    put(store, block(store, None, 0))
    cache.close(10)
    again = open_cache(cache.budget.folder, clock)
    assert open_store(again).pins == {}
    again.close(10)


def test_clock_may_jump(cache: Cache, store: Store, clock: Clock) -> None:
    """A clock that is set back or forward loses nothing and breaks no order."""
    nodes = chain(store, 3, checkpoints=[1, 3])
    store.used(nodes[2], 384)
    for jump_s in (-10 * 365 * 86_400, 20 * 365 * 86_400):
        clock.now_s += jump_s
        store.used(nodes[0], 128)
        cache.count_writes()
        pins.end_pins(cache)
        assert nodes[0].use.short_at(clock.now_s) <= 3
        victims, _, _ = browse.plan_eviction(cache, Selection(), 1)
        assert [victim.node for victim in victims if victim.kind is Kind.BLOCK] == nodes[::-1]
    cache.close(10)
    again = open_cache(cache.budget.folder, clock)
    assert set(open_store(again).index.nodes) == {node.key for node in nodes}
    again.close(10)


def test_what_is_no_speed_counts_for_nothing(store: Store) -> None:
    """However slow a daemon says it is, seconds saved stay a number; the last speed is kept."""
    (node,) = chain(store, 1)
    for speed in (float("nan"), float("inf"), -1.0, 5e-324, 100.0):
        store.measured(speed)
        store.used(node, 128)
    kept = Counters.unpack(store.counters.pack())  # with the store, for the next process
    assert kept.seconds_saved == pytest.approx(5 * 1.28)
    assert kept.prefill_tok_s == 100
