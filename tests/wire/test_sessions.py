"""Sessions and estimates through a real daemon, with a KV cache service beside it."""

import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from ds4.v1 import inference_pb2 as pb
from ds4.v1 import sessions_pb2, sessions_pb2_grpc, types_pb2
from ds4_daemon import standin

from tests.wire.conftest import Daemon, refusal
from tests.wire.kv_service import Service

# Room in memory for two short sessions of the stand-in.
LIVE_BYTES = 24_000_000


@pytest.fixture(scope="module")
def linked(models: standin.StandIn) -> Iterator[Daemon]:
    """A daemon and its service, for the tests of this module."""
    with tempfile.TemporaryDirectory(prefix="ds4-", dir="/tmp") as folder:
        service = Service(Path(folder), "--min-tokens", "128", "--budget-bytes", "400000000")
        flags = ("--kv-min-saving-s", "0", "--live-sessions-bytes", str(LIVE_BYTES))
        daemon = Daemon(Path(folder), models.gguf, *flags, "--kv-deadline-s", "20")
        try:
            service.start()
            yield daemon.start()
        finally:
            daemon.kill()
            service.kill()


@pytest.fixture
def sessions(linked: Daemon) -> Iterator[sessions_pb2_grpc.SessionsStub]:
    with linked.channel() as channel:
        yield sessions_pb2_grpc.SessionsStub(channel)


def prompt(seed: int, length: int = 300) -> list[int]:
    return [int(i) for i in np.random.RandomState(seed).randint(3, 8000, length)]


def request(ids: list[int], session: str = "", **more: Any) -> pb.GenerateRequest:
    return pb.GenerateRequest(
        client=types_pb2.ClientInfo(name="app", instance="1"),
        prompt=pb.Prompt(token_ids=types_pb2.TokenIds(ids=ids)),
        sampling=types_pb2.Sampling(temperature=0, max_tokens=4, ignore_eos=True),
        session=session,
        **more,
    )


def generate(
    daemon: Daemon, ids: list[int], session: str = ""
) -> tuple[list[int], pb.Accepted, pb.Usage]:
    with daemon.inference() as stub:
        events = list(stub.Generate(request(ids, session), timeout=60))
    assert events[-1].finished.reason == pb.FINISH_REASON_LENGTH
    tokens = [i for e in events for i in e.delta.token_ids]
    return tokens, events[0].accepted, events[-1].finished.usage


def estimate(daemon: Daemon, asked: pb.GenerateRequest) -> pb.EstimateResponse:
    with daemon.inference() as stub:
        return stub.Estimate(pb.EstimateRequest(request=asked), timeout=30)


def listed(sessions: sessions_pb2_grpc.SessionsStub) -> dict[str, sessions_pb2.Session]:
    found = sessions.ListSessions(sessions_pb2.ListSessionsRequest(client_name="app"), timeout=10)
    return {session.name: session for session in found.sessions}


def test_a_session_lives_through_its_calls(
    linked: Daemon, sessions: sessions_pb2_grpc.SessionsStub
) -> None:
    """Made by a request, listed, forked, rewound, renamed, pinned and deleted."""
    ids = prompt(1)
    answer, _, _ = generate(linked, ids, "chat")
    chat = listed(sessions)["chat"]
    assert chat.state == sessions_pb2.SESSION_STATE_IDLE
    assert chat.tokens == 303
    assert chat.client == types_pb2.ClientInfo(name="app", instance="1")
    assert chat.tail_text
    assert chat.own_bytes > 0

    steps = linked.steps
    fork = sessions.ForkSession(
        sessions_pb2.ForkSessionRequest(session="chat", name="branch"), timeout=10
    )
    assert (fork.session.tokens, fork.recompute_tokens) == (303, 0)
    assert fork.session.shared_bytes > 0
    back = sessions.RewindSession(
        sessions_pb2.RewindSessionRequest(session="branch", keep_tokens=260), timeout=10
    )
    assert (back.session.tokens, back.recompute_tokens) == (256, 4)
    named = sessions.NameSession(
        sessions_pb2.NameSessionRequest(session=chat.id, name="main"), timeout=10
    )
    assert named.session.id == chat.id
    pinned = sessions.PinSession(
        sessions_pb2.PinSessionRequest(session="main", pinned=True), timeout=10
    )
    assert pinned.session.pinned
    assert linked.steps == steps, "nothing of this computes"

    _, accepted, usage = generate(linked, [*ids, *answer, 7, 8], "main")
    assert accepted.cached_tokens_estimate == usage.cached_live_tokens == 303
    for name in ("main", "branch"):
        sessions.DeleteSession(sessions_pb2.DeleteSessionRequest(session=name), timeout=10)
    assert not listed(sessions)


def test_a_session_that_left_memory_comes_back(
    linked: Daemon, sessions: sessions_pb2_grpc.SessionsStub
) -> None:
    """It stays listed as saved, can be forked there, and is restored when it is asked for."""
    ids = prompt(2)
    cold = estimate(linked, request(ids))
    assert (cold.cached_live_tokens, cold.prefill_tokens) == (0, 300)
    assert cold.first_token_s > 0
    answer, accepted, _ = generate(linked, ids, "away")
    assert accepted.cached_tokens_estimate == 0
    wait_for_saves(linked)
    warm = estimate(linked, request([*ids, *answer, 5]))
    assert (warm.cached_live_tokens, warm.prefill_tokens) == (303, 2)
    for seed in (3, 4, 5):
        generate(linked, prompt(seed))
    away = listed(sessions)["away"]
    assert away.state == sessions_pb2.SESSION_STATE_SAVED
    assert (away.tokens, away.own_bytes) == (256, 0)

    fork = sessions.ForkSession(
        sessions_pb2.ForkSessionRequest(session="away", name="copy"), timeout=10
    )
    assert (fork.session.state, fork.session.tokens) == (sessions_pb2.SESSION_STATE_SAVED, 256)
    stored = estimate(linked, request([*ids, *answer, 5]))
    assert (stored.cached_restored_tokens, stored.prefill_tokens) == (256, 49)
    assert 0 < stored.need_bytes < stored.headroom_bytes
    again, _, usage = generate(linked, ids, "away")
    assert again == answer
    assert usage.cached_restored_tokens == 256
    back = listed(sessions)["away"]
    assert (back.id, back.state) == (away.id, sessions_pb2.SESSION_STATE_IDLE)


def test_an_estimate_tells_what_cannot_run(linked: Daemon) -> None:
    """Instead of failing, and it costs no step."""
    steps = linked.steps
    refused = estimate(linked, request([1] * 200_000))
    assert refused.refusal.reason == "PROMPT_TOO_LONG"
    assert refused.refusal.hint
    assert estimate(linked, request([])).refusal.reason == "EMPTY_PROMPT"
    assert linked.steps == steps


def test_what_is_not_there_says_so(
    linked: Daemon, sessions: sessions_pb2_grpc.SessionsStub
) -> None:
    """A missing session and a bad name are refused with a reason, a hint and a status."""
    calls: list[tuple[Callable[[], object], grpc.StatusCode, str]] = [
        (
            lambda: sessions.DeleteSession(sessions_pb2.DeleteSessionRequest(session="none")),
            grpc.StatusCode.NOT_FOUND,
            "SESSION_NOT_FOUND",
        ),
        (
            lambda: generate(linked, prompt(9), "two words"),
            grpc.StatusCode.INVALID_ARGUMENT,
            "BAD_SESSION_NAME",
        ),
    ]
    for call, status, why in calls:
        with pytest.raises(grpc.RpcError) as caught:
            call()
        assert caught.value.code() is status
        reason, hint = refusal(caught.value)
        assert (reason, bool(hint)) == (why, True)


def wait_for_saves(daemon: Daemon, limit_s: float = 20.0) -> None:
    """Until nothing waits to be sent to the service."""
    began_s = time.monotonic()
    while left := daemon.status().kv_link.queue_bytes:
        if time.monotonic() - began_s > limit_s:
            pytest.fail(f"{left} bytes still wait")
        time.sleep(0.02)
