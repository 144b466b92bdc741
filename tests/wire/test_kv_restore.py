"""Daemon and KV cache service together: what was computed is restored, exactly, or is a miss."""

import concurrent.futures
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ds4.v1 import admin_pb2, admin_pb2_grpc, kvcache_pb2_grpc, kvstore_pb2, types_pb2
from ds4.v1 import inference_pb2 as pb
from ds4_daemon import standin

from tests.wire.conftest import Daemon
from tests.wire.kv_service import Service

SERVICE = ("--min-tokens", "128", "--budget-bytes", "400000000")
# Sessions do not outlive their request here, so that what is reused came from the service.
DAEMON = ("--kv-min-saving-s", "0", "--live-sessions-bytes", "0", "--kv-deadline-s", "20")
LENGTHS = (129, 511, 4095, 4096, 4097)


@pytest.fixture
def service(home: Path) -> Iterator[Service]:
    started = Service(home, *SERVICE)
    try:
        yield started.start()
    finally:
        started.kill()


@pytest.fixture
def linked(home: Path, models: standin.StandIn, service: Service) -> Iterator[Daemon]:
    """A daemon whose service runs."""
    started = Daemon(home, models.gguf, *DAEMON)
    try:
        yield started.start()
    finally:
        started.kill()


def prompt(seed: int, length: int) -> list[int]:
    return [int(i) for i in np.random.RandomState(seed).randint(3, 8000, length)]


def generate(
    daemon: Daemon, ids: list[int], tokens: int = 6, **cache: Any
) -> tuple[list[int], pb.Usage]:
    """The tokens of a greedy answer, and what it used."""
    request = pb.GenerateRequest(
        prompt=pb.Prompt(token_ids=types_pb2.TokenIds(ids=ids)),
        sampling=types_pb2.Sampling(temperature=0, max_tokens=tokens, ignore_eos=True),
        cache=pb.CachePolicy(**cache),
    )
    with daemon.inference() as stub:
        events = list(stub.Generate(request, timeout=60))
    assert events[-1].finished.reason == pb.FINISH_REASON_LENGTH
    return [i for e in events for i in e.delta.token_ids], events[-1].finished.usage


def wait_for_saves(daemon: Daemon, limit_s: float = 20.0) -> admin_pb2.KvLinkStatus:
    """The link's counters once nothing waits to be sent."""
    began_s = time.monotonic()
    while (link := daemon.status().kv_link).queue_bytes:
        if time.monotonic() - began_s > limit_s:
            pytest.fail(f"{link.queue_bytes} bytes still wait")
        time.sleep(0.02)
    return link


def hits(service: Service) -> tuple[int, int]:
    """Lookups that restored something, as the service counts them, and tokens."""
    with service.channel() as channel:
        status = admin_pb2_grpc.AdminStub(channel).Status(admin_pb2.StatusRequest(), timeout=10)
    return status.kv_cache.total.hits, status.kv_cache.total.tokens_saved


def test_a_restored_state_equals_a_computed_one_bit_for_bit(
    home: Path, models: standin.StandIn, service: Service, tmp_path: Path
) -> None:
    """After a restart of both processes, logits, tokens and every array of the state are equal."""
    prompts = {f"{n:05}": np.array(prompt(n, n), np.int32) for n in LENGTHS}
    np.savez(tmp_path / "prompts.npz", allow_pickle=False, **prompts)
    results = []
    for name in ("cold", "restored"):
        out = tmp_path / f"{name}.npz"
        command = [sys.executable, "-m", "tests.wire.kv_probe"]
        paths = [str(p) for p in (home, models.gguf, tmp_path / "prompts.npz", out)]
        environment = os.environ | {"OPENBLAS_NUM_THREADS": "1"}  # as tests.wire.conftest has it
        subprocess.run([*command, *paths], check=True, timeout=100, env=environment)
        results.append(np.load(out))
        if name == "cold":
            assert service.stop() == 0
            service.start()
    cold, restored = results
    for length in LENGTHS:
        name = f"{length:05}"
        assert cold[f"{name}/restored"] == 0
        assert restored[f"{name}/restored"] == (length - 1) // 128 * 128
        steps = len(restored[f"{name}/logits"])
        for key in (key for key in cold.files if key.startswith(f"{name}/")):
            ours, theirs = cold[key], restored[key]
            if key.endswith("/logits"):
                ours = ours[-steps:]
            elif key.endswith(("/restored", "/miss")):
                continue
            assert np.array_equal(ours, theirs), key
    assert hits(service) == (len(LENGTHS), sum((n - 1) // 128 * 128 for n in LENGTHS))


def test_a_second_client_does_not_compute_what_the_first_did(
    linked: Daemon, service: Service
) -> None:
    """Prefixes are found whole and in part, also after both processes were killed."""
    ids = prompt(1, 1500)
    cold, usage = generate(linked, ids)
    assert usage.miss_reason == types_pb2.MISS_REASON_COLD
    assert usage.cached_restored_tokens == 0
    wait_for_saves(linked)
    again, usage = generate(linked, ids)
    assert again == cold
    assert (usage.cached_restored_tokens, usage.cached_live_tokens) == (1408, 0)
    assert usage.miss_reason == types_pb2.MISS_REASON_UNSPECIFIED
    _, usage = generate(linked, [*ids, *prompt(2, 200)])
    assert usage.cached_restored_tokens == 1408
    wait_for_saves(linked)
    time.sleep(1.0)  # what was put is on disk within a second: the service's promise
    linked.kill()
    service.kill()
    service.start()
    linked.start()
    again, usage = generate(linked, ids)
    assert again == cold
    assert usage.cached_restored_tokens == 1408


def test_seconds_saved_are_those_of_the_measured_speed(linked: Daemon, service: Service) -> None:
    """The service learns from the daemon how fast it computes, and says what restoring saved."""
    ids = prompt(11, 1500)
    _, usage = generate(linked, ids)
    wait_for_saves(linked)
    generate(linked, ids)
    with service.channel() as channel:
        status = admin_pb2_grpc.AdminStub(channel).Status(admin_pb2.StatusRequest(), timeout=10)
    saved = status.kv_cache.total
    assert saved.tokens_saved == 1408
    assert saved.seconds_saved == pytest.approx(1408 / usage.prefill_tok_s, rel=0.5)


def test_the_end_of_an_answer_is_saved(linked: Daemon) -> None:
    """A conversation goes on from its last answer, though its session has left memory."""
    ids = prompt(3, 250)
    answer, _ = generate(linked, ids, 150)
    wait_for_saves(linked)
    _, usage = generate(linked, [*ids, *answer, *prompt(4, 30)])
    assert usage.cached_restored_tokens == 384


def test_salts_share_nothing(linked: Daemon) -> None:
    """A prompt saved under one salt is a miss under another, and hits under its own."""
    ids = prompt(5, 700)
    generate(linked, ids, salt="a")
    wait_for_saves(linked)
    _, usage = generate(linked, ids, salt="b", no_save=True)
    assert usage.cached_restored_tokens == 0
    assert usage.miss_reason == types_pb2.MISS_REASON_SALT
    _, usage = generate(linked, ids, salt="a")
    assert usage.cached_restored_tokens == 640
    _, usage = generate(linked, ids, salt="a", bypass=True)
    assert usage.cached_restored_tokens == 0
    assert usage.miss_reason == types_pb2.MISS_REASON_BYPASSED


def test_what_is_not_to_be_saved_is_not(linked: Daemon) -> None:
    """A request with no_save leaves nothing in the service."""
    ids = prompt(6, 700)
    generate(linked, ids, no_save=True)
    assert wait_for_saves(linked).saved_records == 0
    _, usage = generate(linked, ids)
    assert usage.cached_restored_tokens == 0


def test_without_the_service_prompts_are_computed(linked: Daemon, service: Service) -> None:
    """Killed, the service is a miss with a reason; started again, it serves what it has."""
    ids = prompt(7, 700)
    cold, _ = generate(linked, ids)
    wait_for_saves(linked)
    time.sleep(1.0)
    service.kill()
    tokens, usage = generate(linked, ids)
    assert tokens == cold
    assert usage.miss_reason == types_pb2.MISS_REASON_UNAVAILABLE
    status = linked.status().kv_link
    assert status.state == admin_pb2.KV_LINK_STATE_UNAVAILABLE
    assert status.problem.reason == "KV_CACHE_UNAVAILABLE"
    service.start()
    tokens, usage = generate(linked, ids)
    assert tokens == cold
    assert usage.cached_restored_tokens == 640
    assert linked.status().kv_link.state == admin_pb2.KV_LINK_STATE_CONNECTED


def test_eight_clients_share_a_prefix(linked: Daemon) -> None:
    """Eight prompts with one beginning compute none of it, each with its own tokens after it."""
    common = prompt(8, 1100)
    generate(linked, common, 1)
    wait_for_saves(linked)
    prompts = [[*common, *prompt(20 + i, 50)] for i in range(8)]
    expected = [generate(linked, ids, bypass=True, no_save=True)[0] for ids in prompts[:2]]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda ids: generate(linked, ids), prompts))
    restored = [usage.cached_restored_tokens for _, usage in results]
    # One that comes when another has restored it forks that one's session.
    live = [usage.cached_live_tokens for _, usage in results]
    assert [a + b for a, b in zip(restored, live, strict=True)] == [1024] * 8
    assert 1024 in restored
    assert [tokens for tokens, _ in results[:2]] == expected


def test_stopping_loses_nothing_that_waits(linked: Daemon, service: Service) -> None:
    """SIGTERM right after an answer: its prefix is found by the next daemon."""
    ids = prompt(9, 2000)
    generate(linked, ids, 1)
    assert linked.stop() == 0
    linked.start()
    _, usage = generate(linked, ids, 1)
    assert usage.cached_restored_tokens == 1920
    assert hits(service)[0] == 1


def explain(daemon: Daemon, ids: list[int], salt: str = "") -> pb.ExplainResponse:
    with daemon.inference() as stub:
        request = pb.ExplainRequest(
            prompt=pb.Prompt(token_ids=types_pb2.TokenIds(ids=ids)), salt=salt
        )
        return stub.Explain(request, timeout=20)


def text(daemon: Daemon, ids: list[int]) -> str:
    with daemon.inference() as stub:
        request = pb.DetokenizeRequest(tokens=types_pb2.TokenIds(ids=ids))
        return stub.Detokenize(request, timeout=20).text


def test_explain_shows_where_a_prompt_leaves_what_is_stored(linked: Daemon) -> None:
    """The first token that differs, both texts around it, the reason and what it costs."""
    ids = prompt(10, 1100)
    generate(linked, ids, 1)
    wait_for_saves(linked)
    other = [*ids[:700], *prompt(11, 400)]
    other[700] = ids[700] + 1
    answer = explain(linked, other)
    assert answer.reason == types_pb2.MISS_REASON_DIVERGED
    assert (answer.prompt_tokens, answer.diverges_at) == (1100, 700)
    assert answer.prompt_text == text(linked, other[676:724])
    assert answer.stored_text == text(linked, ids[676:724])
    assert answer.cost_s > 0
    same = explain(linked, ids)
    assert (same.cached_tokens, same.reason) == (1024, types_pb2.MISS_REASON_UNSPECIFIED)
    assert not same.HasField("diverges_at")
    assert same.cost_s < answer.cost_s


def test_explain_shows_nothing_of_other_salts(linked: Daemon) -> None:
    """Text that is stored in one salt is not told to another."""
    ids = prompt(12, 700)
    generate(linked, ids, 1, salt="a")
    wait_for_saves(linked)
    other = [*ids[:300], *prompt(13, 400)]
    own, foreign = explain(linked, other, "a"), explain(linked, other, "b")
    assert own.diverges_at == 300
    assert not foreign.HasField("diverges_at")
    assert foreign.stored_text == ""
    assert foreign.reason == types_pb2.MISS_REASON_SALT


def test_explain_without_a_service(linked: Daemon, service: Service) -> None:
    """A service that is gone is the reason, and no error."""
    service.kill()
    answer = explain(linked, prompt(14, 700))
    assert answer.reason == types_pb2.MISS_REASON_UNAVAILABLE
    assert explain(linked, prompt(14, 50)).reason == types_pb2.MISS_REASON_TOO_SHORT


@pytest.mark.parametrize("whole", [True, False], ids=["store", "salt"])
def test_what_was_purged_is_stored_again_while_its_session_lives(
    home: Path, models: standin.StandIn, service: Service, whole: bool
) -> None:
    """A prompt that is used from memory after the cache was emptied comes into the cache again."""
    daemon = Daemon(home, models.gguf, *DAEMON, "--live-sessions-bytes", "100000000").start()
    try:
        ids = prompt(12, 700)
        generate(daemon, ids)
        assert wait_for_saves(daemon).saved_records > 5
        with service.channel() as channel:
            cache = kvcache_pb2_grpc.KvCacheStub(channel)
            (store,) = cache.Stat(kvstore_pb2.StatRequest(), timeout=10).stores
            request = kvstore_pb2.PurgeRequest(salt="")
            if whole:
                request = kvstore_pb2.PurgeRequest(fingerprint=store.fingerprint)
            assert cache.Purge(request, timeout=10).records > 5
            for ends in (1, 2, 3):  # the service is asked beside the request, so it may be late
                _, usage = generate(daemon, [*ids, *prompt(12, ends)])
                assert usage.cached_live_tokens >= 640
                wait_for_saves(daemon)
            stats = cache.Stat(kvstore_pb2.StatRequest(), timeout=10).total
        assert {one.name: one.records for one in stats.classes}["block"] >= 5
        assert daemon.stop() == 0
        daemon.start()
        _, usage = generate(daemon, ids)
        assert usage.cached_restored_tokens == 640
    finally:
        daemon.kill()
