"""The process ds4-kvcache and what its socket gets: starts, ends, and messages no daemon sends."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from ds4.v1 import admin_pb2, admin_pb2_grpc, kvstore_pb2
from ds4.v1 import kvcache_pb2 as pb
from grpc import StatusCode

from tests.wire.kv_service import (
    BLOCK,
    CHECKPOINT,
    PACKED,
    Link,
    Service,
    block_record,
    prompt,
    prompt_records,
    refusal,
)

FLAGS = ("--min-tokens", "128", "--budget-bytes", "128000000", "--free-floor-bytes", "0")


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    """One serving ds4-kvcache for the tests of a module."""
    with tempfile.TemporaryDirectory(prefix="ds4-", dir="/tmp") as folder:
        started = Service(Path(folder), *FLAGS)
        try:
            yield started.start()
        finally:
            started.kill()


def header(**fields: Any) -> pb.PutRequest:
    right: dict[str, Any] = {"key": bytes(32), "kind": BLOCK, "codec": PACKED, "data_bytes": 10}
    return pb.PutRequest(header=pb.RecordHeader(**(right | fields)))


def data(count: int) -> pb.PutRequest:
    return pb.PutRequest(data=bytes(count))


def test_second_service_is_refused(service: Service) -> None:
    """A second ds4-kvcache in one home leaves with 78 and says who is there."""
    second = Service(service.home.path, *FLAGS).run()
    assert second.returncode == 78
    assert str(service.process.pid if service.process else 0) in second.stderr


def test_bad_settings_end_the_start(home: Path) -> None:
    """What cannot be used is told with a hint before anything is opened."""
    run = Service(home, "--budget-bytes", "12").run()
    assert run.returncode == 78
    assert "--budget-bytes" in run.stderr and "--help" in run.stderr


def test_folder_open_to_others_is_refused(home: Path) -> None:
    """Prompts can be read in the store, so a folder that others can enter is refused."""
    folder = home / "store"
    folder.mkdir()
    folder.chmod(0o755)
    run = Service(home, "--folder", str(folder)).run()
    assert run.returncode == 78
    assert "chmod 700" in run.stderr


def test_streams_that_are_none_are_refused(service: Service) -> None:
    """A put that is no stream of records is an error, and stores nothing."""
    with service.link() as link:
        opening = pb.PutRequest(opening=pb.PutOpening(store=link.store))
        for messages, reason in (
            ([data(1)], "BAD_STREAM"),
            ([opening, opening], "BAD_STREAM"),
            ([opening, data(1)], "BAD_STREAM"),
            ([opening, header(), header()], "BAD_STREAM"),
            ([opening, header(), data(11)], "BAD_STREAM"),
            ([opening, header(), data(5)], "BAD_STREAM"),
            ([opening, header(), pb.PutRequest()], "BAD_STREAM"),
            ([opening, header(data_bytes=0)], "BAD_RECORD"),
            ([opening, header(data_bytes=2**40)], "BAD_RECORD"),
            ([opening, header(key=b"short")], "BAD_RECORD"),
            ([opening, header(kind=0)], "BAD_RECORD"),
            ([opening, header(codec=0)], "BAD_RECORD"),
            ([opening, header(codec=256)], "BAD_RECORD"),
            ([opening, header(codec=-1)], "BAD_RECORD"),
            ([opening, header(checkpoint_kind=256)], "BAD_RECORD"),
            ([opening, header(checkpoint_kind=-1)], "BAD_RECORD"),
        ):
            with pytest.raises(grpc.RpcError) as error:
                link.stub.Put(iter(messages), timeout=10)
            assert refusal(error.value) == (StatusCode.INVALID_ARGUMENT, reason)
        assert link.stub.Put(iter([opening]), timeout=10) == pb.PutResponse()


def test_bad_records_are_dropped_and_the_rest_stored(service: Service) -> None:
    """A record with a wrong CRC is dropped with what hangs on it, and told; others are stored."""
    with service.link() as link:
        tokens = prompt(20, 600)
        records = list(prompt_records(link, tokens, [512]))
        head, content = records[2]
        broken = pb.RecordHeader()
        broken.CopyFrom(head)
        broken.crc32 ^= 1
        answer = link.send([*records[:2], (broken, content), *records[3:]])
        assert (answer.stored, answer.dropped) == (2, 3)
        assert answer.refusal.reason == "CRC_MISMATCH"
        again = link.send(records)
        assert (again.stored, again.duplicates, again.dropped) == (3, 2, 0)
        assert link.restore(tokens) == 512


def test_swapped_payloads_are_refused_when_they_are_put(service: Service) -> None:
    """Two records with each other's bytes do not match their CRC-32 and are not stored."""
    with service.link() as link:
        records = list(prompt_records(link, prompt(21, 300)))
        (left, left_data), (right, right_data) = records
        answer = link.send([(left, right_data), (right, left_data)])
        assert (answer.stored, answer.dropped) == (0, 2)


def test_orphans_are_refused(service: Service) -> None:
    """A block whose parent is not there is dropped, with the reason and what to do."""
    with service.link() as link:
        tokens = prompt(22, 600)
        answer = link.put(tokens, first=2)
        assert (answer.stored, answer.dropped) == (0, 2)
        assert answer.refusal.reason == "PARENT_MISSING"
        assert answer.refusal.hint


def test_handles_and_leases_that_are_none(service: Service) -> None:
    """A store, a lease or a place that is not there is told as such, and a release never fails."""
    with service.link() as link:
        tokens = prompt(23, 400)
        link.put(tokens, checkpoints=[256])
        lease = link.lookup(tokens).lease
        for request, expected in (
            (pb.FetchRequest(store=1, lease=lease, resume_tokens=256), "NO_SUCH_STORE"),
            (pb.FetchRequest(store=link.store, lease=1, resume_tokens=256), "NO_SUCH_LEASE"),
            (pb.FetchRequest(store=link.store, lease=lease, resume_tokens=100), "BAD_FETCH"),
            (pb.FetchRequest(store=link.store, lease=lease, resume_tokens=384), "BAD_FETCH"),
            (pb.FetchRequest(store=link.store, lease=lease), "BAD_FETCH"),
            (
                pb.FetchRequest(store=link.store, lease=lease, resume_tokens=128),
                "NO_SUCH_CHECKPOINT",
            ),
        ):
            with pytest.raises(grpc.RpcError) as error:
                list(link.stub.Fetch(request, timeout=10))
            assert refusal(error.value)[1] == expected
        link.stub.Release(pb.ReleaseRequest(lease=12345), timeout=10)
        link.stub.Invalidate(pb.InvalidateRequest(store=link.store, key=b"x"), timeout=10)


def test_names_and_numbers_that_are_none(service: Service) -> None:
    """Salts, pins, fingerprints and pages that no client should send are told, with a reason."""
    kv = kvstore_pb2
    with service.link() as link:
        digest, stub = link.digest, link.stub
        long = "s" * 256
        opening = pb.PutRequest(opening=pb.PutOpening(store=link.store, salt=long))
        fingerprint = pb.Fingerprint(digest=digest, json="{" + " " * 70_000 + "}")
        other = pb.Fingerprint(digest=digest, json='{"arch":"x"}')
        for call, reason in (
            (lambda: link.lookup([1], long), "SALT_TOO_LONG"),
            (lambda: stub.Put(iter([opening])), "SALT_TOO_LONG"),
            (lambda: stub.Pin(kv.PinRequest(name="x")), "NO_KEY"),
            (lambda: stub.Pin(kv.PinRequest(name="", key=digest)), "BAD_PIN"),
            (lambda: stub.Pin(kv.PinRequest(name="x", ttl_s=float("nan"))), "BAD_PIN"),
            (lambda: stub.List(kv.ListRequest(page_token="x")), "BAD_PAGE_TOKEN"),
            (lambda: stub.List(kv.ListRequest(page_token="9" * 5000)), "BAD_PAGE_TOKEN"),
            (lambda: stub.Purge(kv.PurgeRequest()), "NOTHING_SELECTED"),
            (lambda: stub.Inspect(kv.InspectRequest(key=b"none")), "NO_SUCH_BLOCK"),
            (lambda: stub.Open(pb.OpenRequest(fingerprint=fingerprint)), "FINGERPRINT_TOO_LONG"),
            (lambda: stub.Open(pb.OpenRequest(fingerprint=other)), "FINGERPRINT_MISMATCH"),
            (lambda: stub.Open(pb.OpenRequest()), "FINGERPRINT_NOT_CANONICAL"),
        ):
            with pytest.raises(grpc.RpcError) as error:
                call()
            assert refusal(error.value)[1] == reason


def test_fetch_from_a_block(service: Service) -> None:
    """Who has the first blocks gets the checkpoint and the others only."""
    with service.link() as link:
        tokens = prompt(24, 700)
        link.put(tokens, checkpoints=[640])
        found = link.lookup(tokens)
        records = link.fetch(found.lease, 640, from_block=3).records
        assert [head.depth for head, _ in records] == [5, 4, 5]
        assert [head.kind for head, _ in records] == [CHECKPOINT, BLOCK, BLOCK]


def test_have_tells_what_is_stored(service: Service) -> None:
    """Have answers key by key for blocks and for checkpoints."""
    with service.link() as link:
        tokens = prompt(25, 400)
        link.put(tokens, checkpoints=[256])
        keys = [*link.keys(tokens), bytes(32)]
        answer = link.stub.Have(pb.HaveRequest(store=link.store, keys=keys), timeout=10)
        assert list(answer.blocks) == [True, True, True, False]
        assert list(answer.checkpoints) == [False, True, False, False]


def test_invalidated_prefix_is_found_no_more(service: Service) -> None:
    """What could not be used is dropped with all below it; what is above is found again."""
    with service.link() as link:
        tokens = prompt(26, 700)
        link.put(tokens, checkpoints=[256, 640])
        request = pb.InvalidateRequest(store=link.store, key=link.keys(tokens)[3])
        assert link.stub.Invalidate(request, timeout=10).records == 3
        assert link.restore(tokens) == 256
        request.key, request.quarantine = link.keys(tokens)[0], True
        assert link.stub.Invalidate(request, timeout=10).records == 4
        assert link.restore(tokens) == 0
        assert link.put(tokens).refusal.reason == "QUARANTINED"


def test_two_clients_store_one_prefix(service: Service) -> None:
    """Two clients that put the same prefix at once store each record once, and both can read it."""
    tokens = prompt(27, 1500)
    with service.link() as one, service.link() as other:
        before = one.stat()

        def half(link: Link) -> Any:
            def messages() -> Iterator[pb.PutRequest]:
                yield pb.PutRequest(opening=pb.PutOpening(store=link.store))
                for head, content in prompt_records(link, tokens, [1408]):
                    yield pb.PutRequest(header=head)
                    yield pb.PutRequest(data=content)

            return link.stub.Put.future(messages(), timeout=20)

        answers = [call.result() for call in (half(one), half(other))]
        assert sum(answer.stored for answer in answers) == 12
        assert sum(answer.duplicates for answer in answers) == 12
        assert one.stat().puts - before.puts == 12
        assert one.restore(tokens) == other.restore(tokens) == 1408


def test_hits_are_counted(service: Service) -> None:
    """Hits, tokens and seconds saved, misses and their reasons are what happened."""
    with service.link('{"arch":"counted"}') as link:
        tokens = prompt(28, 600)
        link.put(tokens, checkpoints=[512])
        link.restore(tokens)
        link.lookup(prompt(29, 600))
        stats = link.stat()
        assert (stats.hits, stats.misses, stats.tokens_saved) == (1, 1, 512)
        assert stats.seconds_saved == pytest.approx(5.12)  # at 100 tokens a second
        assert [(one.reason, one.count) for one in stats.misses_by_reason] == [(1, 1)]
        assert {one.name: one.records for one in stats.classes} == {
            "block": 4,
            "checkpoint": 1,
            "index": 4,
        }
        with service.channel() as channel:
            admin = admin_pb2_grpc.AdminStub(channel)
            status = admin.Status(admin_pb2.StatusRequest(), timeout=10)
            text = admin.Metrics(admin_pb2.MetricsRequest(), timeout=10).text
        assert status.process.name == "ds4-kvcache"
        assert status.kv_cache.total.hits >= 1
        label = f'{{fingerprint="{link.digest.hex()[:16]}"}}'
        assert f"ds4_kv_tokens_saved_total{label} 512\n" in text


def test_churn_stays_within_the_budget(service: Service) -> None:
    """Four times the budget goes through, and the files end no larger than 1.1 times it."""
    with service.link('{"arch":"churn"}', block_bytes=400_000) as link:
        for seed in range(180):
            tokens = prompt(seed, 129 + 128 * (seed % 13))
            answer = link.put(tokens, checkpoints=[128 * (len(tokens) // 128)])
            assert answer.dropped == 0, answer.refusal
        assert link.restore(tokens) == 128 * (len(tokens) // 128)
        stat = link.stub.Stat(kvstore_pb2.StatRequest(), timeout=10)
        assert stat.total.evictions > 100
        assert stat.total.file_bytes < 1.1 * stat.budget_bytes
        assert stat.written_today_bytes > 3.5 * stat.budget_bytes


def test_drain_brings_all_to_disk_and_stops(home: Path) -> None:
    """Admin.Drain writes what waits, and with `stop` the process leaves with 0."""
    service = Service(home, *FLAGS).start()
    try:
        tokens = prompt(30, 600)
        with service.link() as link:
            link.put(tokens, checkpoints=[512])
            admin = admin_pb2_grpc.AdminStub(link.channel)
            admin.Drain(admin_pb2.DrainRequest(), timeout=10)
            assert link.stat().queue_bytes == 0
            admin.Drain(admin_pb2.DrainRequest(stop=True), timeout=10)
        assert service.process is not None
        assert service.process.wait(10) == 0
        service.start()
        with service.link() as link:
            assert link.restore(tokens) == 512
    finally:
        service.kill()


def test_restart_in_the_middle_of_a_fetch(home: Path) -> None:
    """A fetch whose service is killed ends with UNAVAILABLE, and all that came before is right."""
    service = Service(home, *FLAGS).start()
    try:
        with service.link(block_bytes=500_000) as link:
            tokens = prompt(31, 5000)
            link.put(tokens, checkpoints=[4992])
            found = link.lookup(tokens)
            request = pb.FetchRequest(store=link.store, lease=found.lease, resume_tokens=4992)
            stream = link.stub.Fetch(request, timeout=20)
            head = next(stream).header
            assert (head.kind, head.depth) == (CHECKPOINT, 39)
            service.kill()
            with pytest.raises(grpc.RpcError) as error:
                list(stream)
            assert error.value.code() is StatusCode.UNAVAILABLE
        service.start()
        with service.link(block_bytes=500_000) as link:
            assert link.restore(tokens) in (0, 4992)
    finally:
        service.kill()


def test_a_block_record_needs_its_tokens(service: Service) -> None:
    """A block that comes without its 128 token ids is dropped, and told why."""
    with service.link() as link:
        tokens = prompt(32, 200)
        key = link.keys(tokens)[0]
        answer = link.send([block_record(key, link.root(), 1, tokens[:127], 5000)])
        assert (answer.dropped, answer.refusal.reason) == (1, "BAD_RECORD")


def test_one_folder_has_one_service(service: Service, home: Path) -> None:
    """A service of another home is refused the folder of a running one, and nothing is touched."""
    tokens = prompt(71, 600)
    with service.link() as link:
        link.put(tokens, checkpoints=[512])
    folder = service.home.cache_dir / "kv.noindex"
    other = Service(home, "--folder", str(folder))
    other.home.path.mkdir(mode=0o700, exist_ok=True)
    refused = other.run()
    assert refused.returncode == 78
    assert "FOLDER_IN_USE" in refused.stderr
    with service.link() as link:
        assert link.restore(tokens) == 512


def test_a_log_of_writes_that_means_nothing_is_ignored(service: Service) -> None:
    """Whatever stands in the file of figures, the service starts."""
    service.stop()
    file = service.home.cache_dir / "kv.noindex" / "v1" / "written.json"
    for text in ('{"1": null}', '{"1": 1e999}', "[]", "{", "[" * 30_000):
        file.write_text(text)
        service.start()
        assert service.stop() == 0


@pytest.mark.parametrize("how", ["deleted", "cut"])
def test_a_file_that_goes_under_a_running_service_heals(home: Path, how: str) -> None:
    """Deleted or cut short under a running service, what was stored is a miss and taken anew."""
    service = Service(home, *FLAGS).start()
    try:
        tokens = prompt(72, 600)
        with service.link() as link:
            link.put(tokens, checkpoints=[512])
            admin_pb2_grpc.AdminStub(link.channel).Drain(admin_pb2.DrainRequest(), timeout=10)
            (folder,) = service.stores
            link.put(prompt(73, 600))  # waits to be written
            if how == "deleted":
                shutil.rmtree(service.home.cache_dir)
            else:
                os.truncate(folder / "data.mdb", 20_000)
            with pytest.raises(grpc.RpcError) as error:
                link.lookup(tokens)
            assert refusal(error.value) == (StatusCode.NOT_FOUND, "NO_SUCH_STORE")
            answer = link.stub.Stat(kvstore_pb2.StatRequest(), timeout=10)
            assert (answer.lost_stores, len(answer.stores)) == (1, 0)
        with service.link() as link:
            assert link.restore(tokens) == 0
            assert link.put(tokens, checkpoints=[512]).stored == 5
            admin_pb2_grpc.AdminStub(link.channel).Drain(admin_pb2.DrainRequest(), timeout=10)
        assert "its file was" in service.log.read_text()
        assert service.home.cache_dir.stat().st_mode & 0o077 == 0
        assert service.stop() == 0
        service.start()
        with service.link() as link:
            assert link.restore(tokens) == 512
    finally:
        service.kill()
