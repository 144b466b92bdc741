"""The link to a KV cache service that lies, stalls and dies: right values or a miss."""

import random
import time
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from ds4.v1 import kvcache_pb2 as pb
from ds4.v1 import kvstore_pb2, types_pb2
from ds4_daemon.kvlink import grid, sender
from ds4_daemon.kvlink.link import Link
from ds4_daemon.kvlink.records import Restored
from ds4_daemon.kvlink.slab import Data
from ds4_daemon.kvlink.store import parse_fetch
from ds4_daemon.misses import Miss

from tests.unit.kv_peer import (
    Collected,
    Messages,
    Peer,
    link_to,
    record_of,
    restore,
    save,
    tokens_of,
    wait_until,
)

TOKENS = tokens_of(1, 6)


@pytest.fixture
def peer() -> Iterator[Peer]:
    started = Peer().start()
    yield started
    started.stop()
    started.folder.cleanup()


@pytest.fixture
def link(peer: Peer) -> Iterator[Link]:
    made = link_to(peer)
    yield made
    made.close(1)


def check(result: Restored | None) -> int:
    """Tokens that were restored; every value of them must be right."""
    assert result is not None
    if not result.tokens:
        assert result.target is None
        return 0
    target = result.target
    assert isinstance(target, Collected)
    blocks = result.tokens // 128
    assert sorted(target.blocks) == list(range(blocks))
    for i, record in target.blocks.items():
        assert all(map(grid.same, record, record_of(2 * i, False)))
    assert all(map(grid.same, target.checkpoint, record_of(2 * blocks - 1, True)))
    return result.tokens


def test_what_is_saved_comes_back(peer: Peer, link: Link) -> None:
    """All of it, to the last bit, with the lease given back; what is stored is not sent again."""
    save(link, TOKENS, [2, 6])
    assert (link.sender.stored, link.sender.duplicates) == (8, 0)
    save(link, TOKENS, [2, 6])
    assert (link.sender.stored, link.sender.duplicates) == (8, 8)
    pending = restore(link, TOKENS)
    assert check(pending.result) == 768
    assert pending.result is not None and pending.result.miss is Miss.NONE
    assert peer.released == [1]
    assert check(restore(link, TOKENS[:500]).result) == 256
    assert check(restore(link, TOKENS, live=768).result) == 0


def _flip(messages: Messages) -> Iterator[pb.FetchResponse]:
    """One bit of the fourth record's data."""
    at = [i for i, m in enumerate(messages) if m.HasField("header")][3] + 1
    data = bytearray(messages[at].data)
    data[100] ^= 4
    messages[at].data = bytes(data)
    return iter(messages)


def _truncate(messages: Messages) -> Iterator[pb.FetchResponse]:
    at = [i for i, m in enumerate(messages) if m.HasField("header")][4]
    return iter(messages[: at - 1] + messages[at:])


def _swap(messages: Messages) -> Iterator[pb.FetchResponse]:
    """The payloads of two blocks, headers in place."""
    a, b = ([i for i, m in enumerate(messages) if m.HasField("header")][i] for i in (2, 3))
    messages[a + 1].data, messages[b + 1].data = messages[b + 1].data, messages[a + 1].data
    return iter(messages)


def _swap_whole(messages: Messages) -> Iterator[pb.FetchResponse]:
    """Two blocks whole, each under the other's depth."""
    a, b = ([i for i, m in enumerate(messages) if m.HasField("header")][i] for i in (2, 3))
    messages[a].header.depth, messages[b].header.depth = 3, 2
    return iter(messages)


def _other_codec(messages: Messages) -> Iterator[pb.FetchResponse]:
    messages[0].header.codec = kvstore_pb2.CODEC_RAW
    return iter(messages)


def _unknown_codec(messages: Messages) -> Iterator[pb.FetchResponse]:
    messages[0].header.codec = kvstore_pb2.Codec.ValueType(99)
    return iter(messages)


def _failure(messages: Messages) -> Iterator[pb.FetchResponse]:
    failure = pb.FetchResponse(failure=types_pb2.Error(reason="FRAME_DAMAGED", message="bad"))
    return iter([*messages[:5], failure])


def _drop_end(messages: Messages) -> Iterator[pb.FetchResponse]:
    return iter(messages[:-8])


def _no_checkpoint(messages: Messages) -> Iterator[pb.FetchResponse]:
    at = [i for i, m in enumerate(messages) if m.HasField("header")][1]
    return iter(messages[at:])


def _too_much(messages: Messages) -> Iterator[pb.FetchResponse]:
    return iter([*messages[:2], pb.FetchResponse(data=b"x" * 100_000), *messages[2:]])


def _data_first(messages: Messages) -> Iterator[pb.FetchResponse]:
    return iter(messages[1:])


def _die(messages: Messages) -> Iterator[pb.FetchResponse]:
    yield from messages[:6]
    raise RuntimeError("killed")


@pytest.mark.parametrize(
    ("spoil", "misses"),
    [
        (_flip, {Miss.CORRUPT}),
        (_truncate, {Miss.CORRUPT}),
        (_swap, {Miss.CORRUPT}),
        (_swap_whole, {Miss.CORRUPT}),
        (_other_codec, {Miss.CORRUPT}),
        (_unknown_codec, {Miss.CORRUPT}),
        (_failure, {Miss.CORRUPT}),
        (_too_much, {Miss.CORRUPT}),
        (_data_first, {Miss.CORRUPT}),
        (_drop_end, {Miss.UNAVAILABLE}),
        (_no_checkpoint, {Miss.UNAVAILABLE}),
        (_die, {Miss.UNAVAILABLE}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_wrong_answers_are_misses(peer: Peer, link: Link, spoil: Any, misses: set[Miss]) -> None:
    """Whatever the stream does, nothing wrong is delivered, and the client gets a reason."""
    save(link, TOKENS, [6])
    peer.spoil = spoil
    result = restore(link, TOKENS).result
    assert check(result) == 0
    assert result is not None and result.miss in misses
    assert len(peer.released) == len(peer.leases)
    peer.spoil = iter


def test_what_is_good_above_a_damaged_record_is_used(peer: Peer, link: Link) -> None:
    """The bad block is invalidated, and the checkpoint before it is restored instead."""
    save(link, TOKENS, [2, 6])
    keys = [key for key, kind in peer.records if kind == 1]
    header, data = peer.records[keys[4], 1]
    peer.records[keys[4], 1] = (header, data[:-1] + b"?")
    result = restore(link, TOKENS).result
    assert check(result) == 256
    assert result is not None and result.miss is Miss.CORRUPT
    assert peer.invalidated == [(keys[4], "RECORD_DAMAGED")]


def test_random_damage_delivers_nothing_wrong(peer: Peer, link: Link) -> None:
    """A hundred streams with messages dropped, doubled, moved and bits flipped, from a seed."""
    save(link, TOKENS, [2, 4, 6])
    kept = dict(peer.records)
    dice = random.Random(5)
    restored = 0

    def spoil(messages: Messages) -> Iterator[pb.FetchResponse]:
        for _ in range(dice.randint(0, 2)):
            at = dice.randrange(len(messages))
            match dice.randrange(4):
                case 0:
                    del messages[at]
                case 1:
                    messages.insert(at, messages[dice.randrange(len(messages))])
                case 2:
                    messages.append(messages.pop(at))
                case 3 if messages[at].HasField("data"):
                    data = bytearray(messages[at].data)
                    data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
                    messages[at] = pb.FetchResponse(data=bytes(data))
        return iter(messages)

    peer.spoil = spoil
    for _ in range(100):
        peer.records = dict(kept)
        restored += check(restore(link, TOKENS).result) > 0
    assert 20 < restored < 100


def test_a_service_that_is_slow_is_not_waited_for(peer: Peer) -> None:
    """Past a quarter of what computing takes the daemon computes; the lease is given back."""
    link = link_to(peer, deadline_s=0.2)
    save(link, TOKENS, [6])
    peer.before = lambda name, context: time.sleep(1.0) if name == "Fetch" else None
    began_s = time.monotonic()
    result = restore(link, TOKENS, recompute_s=1.0).result
    assert check(result) == 0
    assert result is not None and result.miss is Miss.TIMEOUT
    assert time.monotonic() - began_s < 1.0 + 10  # on a busy machine; the call itself ends in 0.25
    assert check(restore(link, TOKENS, recompute_s=100.0).result) == 768
    link.close(1)


def test_what_is_not_worth_it_is_not_fetched(peer: Peer) -> None:
    """A prefix that computes in no time is computed."""
    link = link_to(peer, min_saving_s=0.5)
    save(link, TOKENS, [6])
    result = restore(link, TOKENS, recompute_s=0.4).result
    assert result is not None and result.miss is Miss.NOT_WORTH_IT
    assert check(restore(link, TOKENS, recompute_s=0.6).result) == 768
    link.close(1)


def test_no_service_and_one_that_comes_back(peer: Peer, link: Link) -> None:
    """Nothing listens: a miss at once. It listens again: the next restore finds it."""
    chain = save(link, TOKENS, [6])
    peer.stop()
    result = restore(link, TOKENS).result
    assert result is not None and result.miss is Miss.UNAVAILABLE
    assert not link.store.connected
    broken = save(link, tokens_of(2, 3), [3])
    assert broken.broken and not chain.broken
    peer.handle = 8  # a new process knows no old handle
    peer.start()
    assert check(restore(link, TOKENS).result) == 768
    assert link.store.connected


def test_a_restart_is_not_even_noticed(peer: Peer, link: Link) -> None:
    """A service that came back with other handles is opened again within the same call."""
    save(link, TOKENS, [6])
    peer.handle = 9
    assert check(restore(link, TOKENS).result) == 768
    peer.handle = 10
    save(link, tokens_of(3, 2), [2])
    assert link.sender.stored == 7 + 3


def test_a_look_tells_what_became_of_the_service(peer: Peer, link: Link) -> None:
    """Gone, it is noticed at once; back, also with other handles, the next look finds it open."""
    wait_until(lambda: link.store.connected)
    peer.handle, peer.opened = 11, 0
    link.look()
    wait_until(lambda: peer.opened == 1)
    peer.stop()
    link.look()
    assert not link.store.connected and link.store.problem
    peer.start()
    link.look()
    wait_until(lambda: link.store.connected)


def test_a_daemon_that_idles_opens_its_store_again(
    peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A service that was restarted soon knows which stores are in use, though nobody asks it."""
    monkeypatch.setattr("ds4_daemon.kvlink.link.IDLE_S", 0.05)
    link = link_to(peer)
    wait_until(lambda: peer.opened == 1)
    peer.handle = 12
    wait_until(lambda: peer.opened == 2)
    link.close(1)


def test_a_refusal_breaks_the_chain(peer: Peer, link: Link) -> None:
    """A service that cannot take records is counted; the next chain is tried again."""
    peer.refuse = True
    chain = save(link, TOKENS, [6])
    assert chain.broken
    assert link.sender.refused >= 1
    peer.refuse = False
    assert not save(link, TOKENS, [6]).broken
    assert check(restore(link, TOKENS).result) == 768


def test_a_full_queue_drops_the_newest(peer: Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    """What does not fit is dropped and counted, with the rest of its chain; what waits is sent."""
    link = link_to(peer)
    link.sender.flush(5)
    link.sender._most_bytes = 3500
    peer.before = lambda name, context: time.sleep(0.3) if name == "Have" else None
    chain = save(link, TOKENS, [6])
    assert chain.broken
    assert link.sender.dropped == 1
    assert 1 <= link.sender.stored <= 3
    link.close(1)


def test_faults_of_the_wire_end_no_thread(peer: Peer, link: Link) -> None:
    """Every call fails in turn, with every status; afterwards everything works."""
    dice = random.Random(1)
    codes = [c for c in grpc.StatusCode if c is not grpc.StatusCode.OK]

    def before(name: str, context: Any) -> None:
        if dice.random() < 0.5:
            context.abort(dice.choice(codes), "no")

    peer.before = before
    for i in range(30):
        save(link, tokens_of(i, 2), [2])
        check(restore(link, tokens_of(i, 2)).result)
        link.store._retry_s = 0.0
    peer.before = lambda name, context: None
    wait_until(lambda: check(restore(link, TOKENS).result) == 0)
    save(link, TOKENS, [6])
    assert check(restore(link, TOKENS).result) == 768
    assert link.sender.queue_bytes == 0


def test_data_is_parsed_without_a_copy() -> None:
    """The quick way reads what protobuf writes, and leaves all else to protobuf."""
    for size in (0, 1, 127, 128, 20_000, 3_000_000):
        data = bytes(range(256)) * (size // 256 + 1)
        parsed = parse_fetch(pb.FetchResponse(data=data[:size]).SerializeToString())
        got = parsed.view if isinstance(parsed, Data) else parsed.data
        assert bytes(got) == data[:size]
    header = pb.FetchResponse(header=pb.RecordHeader(key=b"k"))
    assert parse_fetch(header.SerializeToString()) == header
    assert sender.QUEUE_BYTES == 64_000_000
