"""The KV cache service over its socket: what is put comes back byte for byte, or not at all."""

import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from ds4.v1 import kvcache_pb2 as pb
from ds4.v1 import types_pb2
from ds4_runtime import shared_memory

from tests.wire.kv_service import CHECKPOINT, Service, prompt, refusal

FLAGS = ("--min-tokens", "128", "--budget-bytes", "400000000")


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    """One serving ds4-kvcache for the tests of a module."""
    with tempfile.TemporaryDirectory(prefix="ds4-", dir="/tmp") as folder:
        started = Service(Path(folder), *FLAGS)
        try:
            yield started.start()
        finally:
            started.kill()


def test_what_is_put_comes_back(service: Service) -> None:
    """A prefix that was stored is found and restored, its checkpoint first, byte for byte."""
    with service.link() as link:
        tokens = prompt(1, 1000)
        answer = link.put(tokens, checkpoints=[512, 896])
        assert (answer.stored, answer.duplicates, answer.dropped) == (9, 0, 0)
        found = link.lookup(tokens)
        assert (found.stored_tokens, found.resume_tokens) == (896, 896)
        assert found.fetch_bytes == 7 * 5000 + 6000
        assert link.fetch(found.lease, 896).records[0][0].kind == CHECKPOINT
        assert link.restore(tokens) == 896
        assert link.restore(tokens[:700]) == 512


def test_restart_hits(service: Service) -> None:
    """What was stored is found after the service was stopped and started, and after SIGKILL."""
    tokens = prompt(2, 600)
    with service.link() as link:
        link.put(tokens, checkpoints=[512])
    assert service.stop() == 0
    service.start()
    with service.link() as link:
        assert link.restore(tokens) == 512
    service.kill()
    service.start()
    with service.link() as link:
        assert link.restore(tokens) == 512


def test_store_is_private(service: Service) -> None:
    """Nobody else can read what is stored: folders are 0700 and files 0600."""
    with service.link() as link:
        link.put(prompt(3, 300), checkpoints=[256])
    (folder,) = service.stores
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(folder.parent.parent.stat().st_mode) == 0o700
    assert {stat.S_IMODE(file.stat().st_mode) for file in folder.iterdir()} == {0o600}


def test_reasons_of_misses(service: Service) -> None:
    """A lookup that finds nothing, or not all, says why."""
    tokens = prompt(4, 1024)
    with service.link() as link, service.link('{"arch":"other"}') as other:
        link.put(tokens, checkpoints=[512])
        assert link.lookup(prompt(5, 600)).miss_reason == types_pb2.MISS_REASON_COLD
        assert link.lookup(tokens[:100]).miss_reason == types_pb2.MISS_REASON_TOO_SHORT
        assert link.lookup(tokens[:500]).miss_reason == types_pb2.MISS_REASON_NO_CHECKPOINT
        assert link.lookup(tokens, "alice").miss_reason == types_pb2.MISS_REASON_SALT
        assert other.lookup(tokens).miss_reason == types_pb2.MISS_REASON_FINGERPRINT
        diverging = link.lookup(prompt(6, 1000, tokens[:600]))
        assert diverging.miss_reason == types_pb2.MISS_REASON_DIVERGED
        assert (diverging.resume_tokens, diverging.stored_tokens) == (512, 512)
        assert link.lookup(tokens[:513]).miss_reason == types_pb2.MISS_REASON_UNSPECIFIED


def test_a_peek_leaves_no_trace(service: Service) -> None:
    """What would be found is told as for a lookup; no lease is taken and nothing is counted."""
    tokens, other = prompt(6, 600), prompt(7, 600)
    with service.link() as link:
        link.put(tokens, checkpoints=[512])
        before = link.stat()
        for asked in (tokens, other):
            peeked, found = link.lookup(asked, peek=True), link.lookup(asked)
            assert (peeked.lease, peeked.lease_ms) == (0, 0)
            found.ClearField("lease")
            found.ClearField("lease_ms")
            assert peeked == found
        after = link.stat()
    assert after.misses == before.misses + 1, "of the lookup that was one"


def test_nearest_prefix_is_of_the_same_salt(service: Service) -> None:
    """Where a prompt leaves what is stored is told to the token, within its own salt only."""
    tokens = prompt(7, 512)
    with service.link() as link:
        link.put(tokens, checkpoints=[512], salt="mine")
        asked = [*tokens[:300], tokens[300] + 1, *tokens[301:]]
        near = link.lookup(asked, "mine", nearest=True).nearest
        assert near.common_tokens == 300
        assert list(near.next_token_ids) == tokens[300:384]
        foreign = link.lookup(asked, "yours", nearest=True).nearest
        assert (foreign.common_tokens, len(foreign.next_token_ids)) == (0, 0)


@pytest.mark.parametrize("window_bytes", [6_000, 16_000, 1_000_000])
def test_shared_memory_brings_the_same_bytes(service: Service, window_bytes: int) -> None:
    """A fetch into shared memory, in windows of any size, brings what a stream brings."""
    tokens = prompt(8, 2000)
    with service.link() as link:
        link.put(tokens, checkpoints=[1920])
        before = link.stat()
        lease = link.lookup(tokens).lease
        sent = link.fetch(lease, 1920)
        placed = link.fetch_into_slab(lease, 1920, window_bytes)
        assert placed.failure == ""
        assert [data for _, data in placed.records] == [data for _, data in sent.records]
        assert [head.key for head, _ in placed.records] == [head.key for head, _ in sent.records]
        after = link.stat()
        assert after.tokens_saved - before.tokens_saved == 2 * 1920


def test_slabs_that_are_none(service: Service) -> None:
    """A name that is none, memory that is too small or gone is told, and nothing is written."""
    name, memory = shared_memory.create(10_000)
    gone, _ = shared_memory.create(10_000)
    shared_memory.unlink(gone)
    with service.link() as link:
        tokens = prompt(9, 300)
        link.put(tokens, checkpoints=[256])
        request = pb.FetchRequest(
            store=link.store, lease=link.lookup(tokens).lease, resume_tokens=256
        )
        for slab, offset, size, reason in (
            ("/etc/passwd", 0, 10_000, "BAD_SLAB"),
            (name, 0, 5_999, "SLAB_TOO_SMALL"),
            (name, 5_000, 6_000, "BAD_SLAB"),
            (name, 2**60, 6_000, "BAD_SLAB"),
            (gone, 0, 10_000, "NO_SUCH_SLAB"),
        ):
            request.slab, request.slab_offset, request.slab_bytes = slab, offset, size
            with pytest.raises(grpc.RpcError) as error:
                list(link.stub.Fetch(request, timeout=10))
            assert refusal(error.value)[1] == reason
    assert memory[:] == bytes(10_000)
    shared_memory.unlink(name)
