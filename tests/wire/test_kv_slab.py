"""The daemon's end of a restore through shared memory, against a real service."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from ds4.v1 import kvcache_pb2 as pb
from ds4_daemon.kvlink import slab
from ds4_daemon.kvlink.slab import Data, Run
from ds4_daemon.kvlink.store import Identity, LinkError, Store
from ds4_runtime import shared_memory

from tests.wire.kv_service import FINGERPRINT, Link, Service, prompt, record_bytes

BLOCK_BYTES = 400_000
TOKENS = prompt(1, 4000)
RESUME = 3968


@pytest.fixture
def service() -> Iterator[Service]:
    """A service that holds one prompt of 12.8 MB."""
    with tempfile.TemporaryDirectory(prefix="ds4-", dir="/tmp") as folder:
        started = Service(Path(folder), "--budget-bytes", "100000000").start()
        try:
            with started.link(block_bytes=BLOCK_BYTES) as link:
                link.put(TOKENS, checkpoints=[RESUME])
            yield started
        finally:
            started.kill()


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """First block and window of each call that is made."""
    calls: list[tuple[int, int]] = []
    start = Store._start

    def counted(self: Store, request: pb.FetchRequest, timeout_s: float) -> object:
        calls.append((request.from_block, request.slab_bytes))
        return start(self, request, timeout_s)

    monkeypatch.setattr(Store, "_start", counted)
    return calls


def restore(service: Service, in_use: int) -> list[int]:
    """Fetch all with the daemon's own code, and read each record as late as is allowed.

    Gives the depths that came, the checkpoint's first.
    """
    with service.channel() as channel:
        link = Link(channel, FINGERPRINT, BLOCK_BYTES)
        found = link.lookup(TOKENS)
        identity = Identity(link.digest, FINGERPRINT, BLOCK_BYTES, "test")
        store = Store(service.home.socket("kvcache"), identity)
        store.probe()
        headers: list[pb.RecordHeader] = []
        waiting: list[tuple[pb.RecordHeader, memoryview]] = []
        for message in store.fetch(found.lease, RESUME, found.fetch_bytes, 20.0, in_use):
            if isinstance(message, Run):
                headers += message.headers
                views = [record.data for record in message.data]
                waiting += zip(message.headers, views, strict=True)
            elif isinstance(message, Data):
                waiting.append((headers[-1], message.view))
            else:
                headers.append(message.header)
            while len(waiting) > in_use:
                check(*waiting.pop(0))
        for one in waiting:
            check(*one)
        store.close()
    return [header.depth for header in headers]


def check(header: pb.RecordHeader, view: memoryview) -> None:
    assert view == record_bytes(header.key, header.kind, header.data_bytes), "wrong bytes"


EXPECTED = [31, *range(1, 32)]


def test_one_window_is_one_call(
    service: Service, asked: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What fits one window comes with one call, and no name of shared memory is left."""
    names: list[str] = []
    create = shared_memory.create

    def noted(size_bytes: int) -> object:
        made = create(size_bytes)
        names.append(made[0])
        return made

    monkeypatch.setattr(shared_memory, "create", noted)
    assert restore(service, 18) == EXPECTED
    assert [block for block, _ in asked] == [0]
    (name,) = names
    with pytest.raises(FileNotFoundError):
        shared_memory.attach(name)


def test_windows_take_turns(
    service: Service, asked: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What needs several windows comes whole, though each is written to again and again."""
    monkeypatch.setattr(slab, "WINDOW_BYTES", 2_500_000)
    assert restore(service, 2) == EXPECTED
    assert [block for block, _ in asked] == [0, 5, 11, 17, 23, 29]
    assert {size for _, size in asked} == {asked[0][1]}


def test_windows_that_are_in_use_are_not_written_to(
    service: Service, asked: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where both windows may still be read, the rest is sent, and every byte is right."""
    monkeypatch.setattr(slab, "WINDOW_BYTES", 1_300_000)
    assert restore(service, 18) == EXPECTED
    assert [size > 0 for _, size in asked] == [True, True, False]


def test_without_shared_memory_it_is_sent(
    service: Service, asked: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where no shared memory is to be had, or the service has none, records are sent."""

    def refuse(size_bytes: int) -> None:
        raise OSError("none here")

    with monkeypatch.context() as inside:
        inside.setattr(shared_memory, "create", refuse)
        assert restore(service, 18) == EXPECTED
    assert asked == [(0, 0)]
    create = shared_memory.create

    def lost(size_bytes: int) -> object:
        made = create(size_bytes)
        shared_memory.unlink(made[0])
        return made

    monkeypatch.setattr(shared_memory, "create", lost)
    assert restore(service, 18) == EXPECTED
    assert [size > 0 for _, size in asked[1:]] == [True, False]


def test_service_killed_midway_is_a_fault(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A service that dies while it fills a window is a LinkError, as it is without."""
    monkeypatch.setattr(slab, "WINDOW_BYTES", 1_300_000)
    with service.channel() as channel:
        link = Link(channel, FINGERPRINT, BLOCK_BYTES)
        found = link.lookup(TOKENS)
        identity = Identity(link.digest, FINGERPRINT, BLOCK_BYTES, "test")
        store = Store(service.home.socket("kvcache"), identity)
        store.probe()
        messages = store.fetch(found.lease, RESUME, found.fetch_bytes, 20.0, 0)
        next(messages)
        service.kill()
        with pytest.raises(LinkError):
            list(messages)
        store.close()
