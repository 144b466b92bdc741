"""What the service does when nobody asks: files with holes, models that are used no more."""

from pathlib import Path

import pytest
from ds4_kvcache import house
from ds4_kvcache.browse import last_s
from ds4_kvcache.errors import RefusedError
from ds4_kvcache.house import House
from ds4_kvcache.identity import Identity
from ds4_kvcache.rpc import messages

from tests.unit.kvcache.small_cache import Clock, chain, open_cache, open_store

DAY_S, YEAR_S = 86_400.0, 365 * 86_400.0


def test_files_with_holes_are_written_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is mostly free pages shrinks by itself, but not while a restore is under way."""
    monkeypatch.setattr(house, "_FREE_BYTES", 100_000)
    cache = open_cache(tmp_path)
    store = open_store(cache)
    kept = chain(store, 2, checkpoints=[2], seed=1, size=100_000)
    gone = chain(store, 40, seed=2, size=100_000)
    assert store.writer.flush(10)
    store.forget(gone[0])
    assert store.writer.flush(10)
    keeper, before = House(cache), cache.file_bytes()
    lease = cache.lease(store, kept[-1])
    keeper.tick()
    assert cache.file_bytes() == before
    cache.release(lease.id)
    keeper.tick()
    after = cache.file_bytes()
    assert after < before / 4
    keeper.tick()
    assert cache.file_bytes() == after
    cache.close(10)


def test_empty_store_of_an_old_model_is_deleted(tmp_path: Path) -> None:
    """A store that no daemon opened and that holds nothing any more goes, file and all."""
    clock = Clock()
    cache = open_cache(tmp_path, clock)
    old = open_store(cache, Identity('{"arch":"old"}', 1, 0))
    chain(open_store(cache), 1)
    cache.close(10)
    again = open_cache(tmp_path, clock)
    assert len(again.stores) == 2
    House(again).tick()
    (left,) = again.stores.values()
    assert left.digest != old.digest
    assert not old.folder.exists()
    again.close(10)


def test_what_was_set_aside_goes_when_room_is_needed(tmp_path: Path) -> None:
    """A damaged store is kept to be looked at while the budget has room for it, and no longer."""
    aside = tmp_path / ("0" * 32 + ".corrupt-1")
    aside.mkdir()
    (aside / "data.mdb").write_bytes(bytes(15_000_000))
    cache = open_cache(tmp_path, budget_bytes=20_000_000)
    store = open_store(cache)
    cache.make_room(store, 1_000_000)
    assert aside.exists()
    cache.make_room(store, 5_000_000)
    assert not aside.exists()
    cache.close(10)


def test_a_clock_that_was_ahead_is_forgotten_in_a_day(tmp_path: Path) -> None:
    """What a clock from next year dated and counted is of now once the clock is right again."""
    clock = Clock()
    cache = open_cache(tmp_path, clock, daily_bytes=1_000_000)
    store, keeper = open_store(cache), House(cache)
    old = chain(store, 2, checkpoints=[2], seed=1)
    clock.now_s += YEAR_S
    keeper.tick()
    ahead = chain(store, 8, checkpoints=[8], seed=2, size=200_000)
    store.used(old[1], 256)
    assert store.writer.flush(10)
    keeper.tick()
    clock.now_s -= YEAR_S
    keeper.tick()
    for node in (*old, *ahead):
        assert last_s(node) <= clock.now_s
        assert node.checkpoint is None or node.checkpoint.created_s <= clock.now_s
    problem = messages.stat(cache).total.problem
    with pytest.raises(RefusedError) as refused:
        cache.make_room(store, 300_000)
    assert refused.value.reason == "WRITE_BUDGET_SPENT"
    assert "clock was ahead" in refused.value.message
    assert (problem.reason, problem.message) == (refused.value.reason, refused.value.message)
    clock.now_s += DAY_S
    cache.make_room(store, 300_000)
    assert cache.writes.ahead_bytes() == 0
    cache.close(10)


def test_dates_of_a_clock_that_was_ahead_are_corrected_at_start(tmp_path: Path) -> None:
    """The same when the service was restarted between, and when there is a clock that was never
    set nothing is believed of it."""
    clock = Clock()
    clock.now_s += YEAR_S
    cache = open_cache(tmp_path, clock)
    store = open_store(cache)
    node = chain(store, 2, checkpoints=[2])[1]
    store.used(node, 256)
    cache.close(10)
    for now_s, dated_s in ((5.0, clock.now_s), (clock.now_s - YEAR_S, clock.now_s - YEAR_S)):
        clock.now_s = now_s
        again = open_cache(tmp_path, clock)
        found = open_store(again).node(node.key)
        assert last_s(found) == found.block.created_s == dated_s
        again.close(10)
