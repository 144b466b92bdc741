"""ds4_client: every failure is an error of its tree, with a reason and a hint."""

import asyncio
import socket
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import pytest
from ds4.v1 import inference_pb2, types_pb2
from ds4_client import (
    AsyncClient,
    CancelledError,
    Chat,
    Client,
    ConfigurationError,
    DeadlineError,
    Ds4Error,
    InternalError,
    InvalidRequestError,
    Message,
    NotBuiltError,
    NotFoundError,
    NotRunningError,
    OverloadedError,
    Text,
)
from ds4_client.errors import AccessError

from tests.unit import client_peer
from tests.unit.client_peer import Peer


@pytest.fixture
def peer(home: Path) -> Iterator[Peer]:
    with client_peer.serving(home) as peer:
        yield peer


def failure(home: Path, *, use_async: bool = False, prompt: Any = "x", **options: Any) -> Ds4Error:
    """The error of one request, through either client."""

    async def in_async() -> None:
        async with AsyncClient(home) as client:
            await client.run(prompt, **options)

    def in_sync() -> None:
        with Client(home) as client:
            client.run(prompt, **options)

    with pytest.raises(Ds4Error) as caught:
        asyncio.run(in_async()) if use_async else in_sync()
    return caught.value


both = pytest.mark.parametrize("use_async", [False, True], ids=["sync", "async"])


@both
@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, InvalidRequestError),
        (grpc.StatusCode.FAILED_PRECONDITION, InvalidRequestError),
        (grpc.StatusCode.NOT_FOUND, NotFoundError),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, OverloadedError),
        (grpc.StatusCode.UNAVAILABLE, OverloadedError),
        (grpc.StatusCode.UNIMPLEMENTED, NotBuiltError),
        (grpc.StatusCode.DEADLINE_EXCEEDED, DeadlineError),
        (grpc.StatusCode.CANCELLED, CancelledError),
        (grpc.StatusCode.PERMISSION_DENIED, AccessError),
        (grpc.StatusCode.INTERNAL, InternalError),
        (grpc.StatusCode.DATA_LOSS, InternalError),
    ],
)
def test_a_status_becomes_an_error_with_what_the_daemon_said(
    peer: Peer, code: grpc.StatusCode, expected: type[Ds4Error], use_async: bool
) -> None:
    """The status chooses the class; reason, sentence and hint are the daemon's, decoded."""

    def script(request: Any, context: Any) -> Iterator[inference_pb2.GenerateEvent]:
        client_peer.refuse(context, code, "SOME_REASON", "es geht nicht – so", "try %E2%89%A4 5%25")
        yield client_peer.accepted()

    peer.script = script
    error = failure(peer.home, use_async=use_async)
    assert type(error) is expected
    assert error.reason == "SOME_REASON"
    assert error.message == "es geht nicht – so"
    assert error.hint == "try ≤ 5%"
    assert str(error) == "es geht nicht – so (try ≤ 5%)"


@both
@pytest.mark.parametrize(
    ("end", "expected", "reason"),
    [
        (inference_pb2.FINISH_REASON_ERROR, InternalError, "ENGINE_FAILED"),
        (inference_pb2.FINISH_REASON_DRAINED, OverloadedError, "ENGINE_FAILED"),
        (inference_pb2.FINISH_REASON_DEADLINE, DeadlineError, "ENGINE_FAILED"),
        (inference_pb2.FINISH_REASON_CANCELLED, CancelledError, "CANCELLED"),
    ],
)
def test_a_bad_end_is_an_error(
    peer: Peer,
    end: inference_pb2.FinishReason.ValueType,
    expected: type[Ds4Error],
    reason: str,
    use_async: bool,
) -> None:
    """A request that ends in another way than an answer does is raised, not returned."""
    told = None
    if end != inference_pb2.FINISH_REASON_CANCELLED:
        told = types_pb2.Error(reason="ENGINE_FAILED", message="it broke", hint="look")

    def script(request: Any, context: Any) -> Iterator[inference_pb2.GenerateEvent]:
        yield client_peer.accepted()
        yield client_peer.finished(end, told)

    peer.script = script
    error = failure(peer.home, use_async=use_async)
    assert (type(error), error.reason) == (expected, reason)


@both
def test_a_stream_without_an_end_is_an_error(peer: Peer, use_async: bool) -> None:
    """Events that stop before the last one are not an answer."""

    def script(request: Any, context: Any) -> Iterator[inference_pb2.GenerateEvent]:
        yield client_peer.accepted()

    peer.script = script
    assert failure(peer.home, use_async=use_async).reason == "STREAM_CUT"


@both
def test_no_daemon_is_said_with_what_to_type(home: Path, use_async: bool) -> None:
    """Without a socket the error says that the daemon is not running and how to start it."""
    error = failure(home, use_async=use_async)
    assert (type(error), error.reason) == (NotRunningError, "NOT_RUNNING")
    assert "ds4-daemon" in error.hint


@both
def test_a_socket_left_behind_is_told_apart(home: Path, use_async: bool) -> None:
    """A socket that nobody listens on is a daemon that is gone."""
    (home / "run").mkdir()
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(home / "run" / "daemon.sock"))
    error = failure(home, use_async=use_async)
    assert (type(error), error.reason) == (NotRunningError, "CONNECTION_REFUSED")


@both
def test_a_daemon_that_dies_in_the_middle_is_noticed(peer: Peer, use_async: bool) -> None:
    """A connection that breaks off in a stream is an error, not the end of the answer."""

    def script(request: Any, context: Any) -> Iterator[inference_pb2.GenerateEvent]:
        yield client_peer.accepted()
        peer._server.stop(0)
        peer.left.wait(10)

    peer.script = script
    error = failure(peer.home, use_async=use_async)
    assert type(error) in (NotRunningError, CancelledError)


def test_a_forbidden_socket_is_explained(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A socket of another user is an access error with a hint."""

    def connect(self: socket.socket, path: str) -> None:
        raise PermissionError(13, "Permission denied")

    class Forbidden(socket.socket):
        pass

    Forbidden.connect = connect  # type: ignore[method-assign,assignment]
    monkeypatch.setattr(socket, "socket", Forbidden)  # root may connect to everything
    error = failure(home)
    assert (type(error), error.reason) == (AccessError, "ACCESS_DENIED")
    assert "DS4_HOME" in error.hint


def test_a_home_too_deep_is_a_configuration_error(home: Path) -> None:
    """A path that no socket can have is told before anything is sent."""
    with pytest.raises(ConfigurationError) as caught:
        Client(home / ("x" * 120))
    assert caught.value.reason == "SOCKET_PATH_TOO_LONG"


def test_a_call_to_what_is_not_built(home: Path) -> None:
    """UNIMPLEMENTED without a reason still becomes a NotBuiltError with one."""
    (home / "run").mkdir()
    server = grpc.server(futures.ThreadPoolExecutor(1))
    server.add_insecure_port(f"unix:{home / 'run' / 'daemon.sock'}")
    server.start()
    try:
        error = failure(home)
    finally:
        server.stop(0).wait()
    assert (type(error), error.reason) == (NotBuiltError, "UNIMPLEMENTED")


@pytest.mark.parametrize(
    ("prompt", "options", "reason"),
    [
        ([{"role": "robot", "content": "x"}], {}, "UNKNOWN_VALUE"),
        ([{"role": "unspecified", "content": "x"}], {}, "UNKNOWN_VALUE"),
        ([{"content": "x"}], {}, "BAD_MESSAGE"),
        ([{"role": "user", "contents": "x"}], {}, "BAD_MESSAGE"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], {}, "BAD_MESSAGE"),
        ([{"role": "user", "content": 7}], {}, "BAD_MESSAGE"),
        (Chat([Message("user", "x")], effort="extreme"), {}, "UNKNOWN_VALUE"),  # type: ignore[arg-type]
        (Text("x\ud800"), {}, "BAD_VALUE"),
        ("x", {"top_k": -1}, "BAD_VALUE"),
        ("x", {"seed": 2**64}, "BAD_VALUE"),
        ("x", {"temperature": "hot"}, "BAD_VALUE"),
        ("x", {"priority": "utmost"}, "BAD_VALUE"),
        ("x", {"timeout_s": -1}, "BAD_TIMEOUT"),
        ("x", {"timeout_s": float("nan")}, "BAD_TIMEOUT"),
    ],
)
def test_what_cannot_be_sent_is_refused_here(
    home: Path, prompt: Any, options: dict[str, Any], reason: str
) -> None:
    """A request that the contract cannot carry is an InvalidRequestError before any connection."""
    error = failure(home, prompt=prompt, **options)
    assert (type(error), error.reason) == (InvalidRequestError, reason)
