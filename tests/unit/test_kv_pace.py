"""Saving takes its time beside steps, and no longer than somebody waits for it."""

import math
import threading
from collections.abc import Iterator

import pytest
from ds4_daemon.kvlink import sender
from ds4_daemon.kvlink.link import Link
from ds4_daemon.kvlink.pace import Pace

from tests.unit.kv_peer import Peer, link_to, queue, save, tokens_of, wait_until

TOKENS = tokens_of(1, 4)


class Waits(threading.Event):
    """Ends every pause at once and keeps how long it would have been."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: list[float] = []

    def wait(self, timeout: float | None = None) -> bool:
        assert timeout is not None
        self.seconds.append(timeout)
        return True


@pytest.fixture
def peer() -> Iterator[Peer]:
    started = Peer().start()
    yield started
    started.stop()
    started.folder.cleanup()


@pytest.fixture
def link(peer: Peer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Link]:
    """Beside steps that never end, and so slow that nothing would be sent before the test ends."""
    monkeypatch.setattr(sender, "_LEAST_RATE", 1e-3)
    monkeypatch.setattr(sender, "_DRAIN_S", 1e9)
    made = link_to(peer)
    made.sender.beside = lambda: True
    yield made
    made.close(5)


def test_pauses_are_what_is_left_of_the_time_that_bytes_may_take() -> None:
    """They add up, so that the rate is kept on average; without a rate there are none."""
    rate, waits = 1000.0, Waits()
    pace = Pace(lambda: rate, waits)
    assert pace.slow
    for _ in range(3):
        pace.did(1_000_000)
    assert [round(s, -2) for s in waits.seconds] == [1000, 2000, 3000]
    rate = math.inf
    assert not pace.slow
    pace.did(10**9)
    assert len(waits.seconds) == 3


def test_who_waits_for_a_slow_save_ends_its_pauses(peer: Peer, link: Link) -> None:
    """One that is under way too: all arrives, as the same bytes as at full speed."""
    queue(link, TOKENS, [4])
    wait_until(lambda: link.sender._packing._next_s > 0)  # it paces
    assert not peer.records
    assert link.sender.flush(20)
    slow = dict(peer.records)
    assert len(slow) == 5
    peer.records.clear()
    link.sender.beside = lambda: False
    save(link, TOKENS, [4])
    assert peer.records == slow


def test_a_queue_half_full_makes_haste(peer: Peer, link: Link) -> None:
    """Beside steps too, so that nothing is dropped: it is sent until less is in it."""
    link.sender._most_bytes = 10_000  # records of the test say that they have 1,000 each
    queue(link, TOKENS, [4])
    wait_until(lambda: link.sender._packing._next_s > 0)
    assert not peer.records
    queue(link, tokens_of(2, 1), [])
    wait_until(lambda: link.sender.queue_bytes <= 5000)
    assert peer.records
    assert link.sender.dropped == 0


def test_no_save_is_slow_while_nothing_runs(peer: Peer, link: Link) -> None:
    """An engine that is idle has no step to be spared."""
    link.sender.beside = lambda: False
    queue(link, TOKENS, [4])
    wait_until(lambda: link.sender.queue_bytes == 0)
    assert len(peer.records) == 5
