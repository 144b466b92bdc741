"""ds4_runtime.server and faults: socket, health, reflection, limits, errors that say why."""

import asyncio
import contextlib
import os
import shutil
import socket
import stat
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import grpc
import grpc.aio
import pytest
from ds4_runtime.address import Home, grpc_target
from ds4_runtime.errors import AddressError, AlreadyRunningError
from ds4_runtime.lifecycle import claim
from ds4_runtime.server import MAX_MESSAGE_BYTES, Server
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)
from structlog.testing import capture_logs


class RefusalError(Exception):
    """What a service raises on purpose."""

    def __init__(self) -> None:
        super().__init__()
        self.reason = "TOO_LONG"
        self.message = "das Prüfstück ist zu lang"
        self.hint = "try ≤ 5 % of it"


class DeepRefusalError(RefusalError):
    """One of a subclass."""


class Echo:
    """Answers bytes with bytes; the request says how."""

    def __init__(self) -> None:
        self.closed = asyncio.Event()

    async def single(self, request: bytes, context: Any) -> bytes:
        if request == b"refuse":
            raise DeepRefusalError
        if request == b"defect":
            raise ValueError("a secret detail")
        if request == b"absent":
            raise NotImplementedError
        return request[:100]

    async def stream(self, request: bytes, context: Any) -> AsyncIterator[bytes]:
        try:
            yield b"first"
            if request == b"refuse":
                raise RefusalError
            while request == b"forever":
                await asyncio.sleep(0.001)
                yield b"more"
        finally:
            self.closed.set()

    async def written(self, request: bytes, context: Any) -> None:
        await context.write(b"first")
        raise RefusalError

    async def taken(self, requests: AsyncIterator[bytes], context: Any) -> bytes:
        async for request in requests:
            if request == b"refuse":
                raise RefusalError
        return b"done"


def register(echo: Echo, server: grpc.aio.Server) -> None:
    """What generated code does, for a service of raw bytes."""
    server.add_generic_rpc_handlers(
        (
            grpc.method_handlers_generic_handler(
                "test.Echo",
                {
                    "Single": grpc.unary_unary_rpc_method_handler(echo.single),
                    "Stream": grpc.unary_stream_rpc_method_handler(echo.stream),
                    "Written": grpc.unary_stream_rpc_method_handler(echo.written),
                    "Taken": grpc.stream_unary_rpc_method_handler(echo.taken),
                },
            ),
        )
    )


Body = Callable[[Server, Echo, Any], Awaitable[None]]


def serve(home: Path, body: Body) -> None:
    """Run `body` against a started server."""

    async def main() -> None:
        with claim(Home(home), "daemon") as tenancy:
            server, echo = Server(tenancy, {RefusalError: grpc.StatusCode.INVALID_ARGUMENT}), Echo()
            server.add("test.Echo", register, echo)
            await server.start()
            try:
                async with grpc.aio.insecure_channel(grpc_target(tenancy.socket)) as channel:
                    await body(server, echo, channel)
            finally:
                await server.stop(0)

    asyncio.run(main())


async def fault(call: Any) -> tuple[grpc.StatusCode, str, dict[str, str]]:
    """Status, details and trailing metadata of a call that must fail."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        _ = [one async for one in call] if hasattr(call, "__aiter__") else await call
    error = caught.value
    trailing = {key: str(value) for key, value in error.trailing_metadata()}
    return error.code(), error.details() or "", trailing


@pytest.mark.parametrize("name", ["plain", "with space", "50% é#?"])
def test_the_socket_is_private_in_any_home(home: Path, name: str) -> None:
    """The socket is 0600 whatever the umask and the name of the home, and gone after the stop."""
    umask = os.umask(0)

    async def body(server: Server, echo: Echo, channel: Any) -> None:
        assert stat.S_IMODE(server.socket.stat().st_mode) == 0o600
        assert os.umask(0) == 0
        assert await channel.unary_unary("/test.Echo/Single")(b"hello") == b"hello"

    try:
        serve(home / name, body)
    finally:
        os.umask(umask)
    assert not Home(home / name).socket("daemon").exists()


def test_a_stale_socket_is_replaced(home: Path) -> None:
    """A socket that a killed process left does not keep the next one from starting."""
    path = Home(home).socket("daemon")
    path.parent.mkdir(mode=0o700)
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as left:
        left.bind(str(path))

    async def body(server: Server, echo: Echo, channel: Any) -> None:
        assert await channel.unary_unary("/test.Echo/Single")(b"hello") == b"hello"

    serve(home, body)


def test_a_socket_that_answers_is_never_taken(home: Path) -> None:
    """Where somebody answers, a start is refused, even if the lock was removed."""

    async def main() -> None:
        with claim(Home(home), "daemon") as first:
            serving = Server(first, {})
            await serving.start()
            shutil.rmtree(Home(home).lock("daemon"))
            with claim(Home(home), "daemon") as second, pytest.raises(AlreadyRunningError):
                await Server(second, {}).start()
            assert first.socket.exists()
            await serving.stop(0)

    asyncio.run(main())


def test_a_file_in_the_sockets_place_is_kept(home: Path) -> None:
    """What is no socket is not removed: the start fails with a named error."""
    path = Home(home).socket("daemon")
    path.parent.mkdir(mode=0o700)
    path.write_text("precious")

    async def body(server: Server, echo: Echo, channel: Any) -> None:
        raise AssertionError("it must not start")

    with pytest.raises(AddressError) as caught:
        serve(home, body)
    assert caught.value.reason == "SOCKET_NOT_BOUND"
    assert path.read_text() == "precious"


def test_health_says_when_there_is_something_to_serve(home: Path) -> None:
    """NOT_SERVING from the start until the owner says otherwise, for each service and the whole."""

    async def body(server: Server, echo: Echo, channel: Any) -> None:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        for serving in (False, True, False):
            if serving:
                await server.set_serving(True)
            for service in ("", "test.Echo"):
                answer = await stub.Check(health_pb2.HealthCheckRequest(service=service))
                assert (answer.status == health_pb2.HealthCheckResponse.SERVING) is serving
            await server.set_serving(False)

    serve(home, body)


def test_reflection_lists_the_services(home: Path) -> None:
    """A generic client can ask what is served."""

    async def body(server: Server, echo: Echo, channel: Any) -> None:
        def ask() -> list[str]:
            with grpc.insecure_channel(grpc_target(server.socket)) as plain:
                return list(ProtoReflectionDescriptorDatabase(plain).get_services())

        services = await asyncio.to_thread(ask)
        assert {"test.Echo", "grpc.health.v1.Health"} <= set(services)

    serve(home, body)


def test_a_refusal_arrives_with_reason_message_and_hint(home: Path) -> None:
    """Whatever the handler streams, the three parts of an error arrive, beyond ASCII too."""

    async def body(server: Server, echo: Echo, channel: Any) -> None:
        async def requests() -> AsyncIterator[bytes]:
            yield b"refuse"

        for call in (
            channel.unary_unary("/test.Echo/Single")(b"refuse"),
            channel.unary_stream("/test.Echo/Stream")(b"refuse"),
            channel.unary_stream("/test.Echo/Written")(b"refuse"),
            channel.stream_unary("/test.Echo/Taken")(requests()),
        ):
            code, details, trailing = await fault(call)
            assert code == grpc.StatusCode.INVALID_ARGUMENT
            assert details == "das Prüfstück ist zu lang"
            assert trailing["ds4-reason"] == "TOO_LONG"
            assert unquote(trailing["ds4-hint"]) == "try ≤ 5 % of it"

    serve(home, body)


def test_a_defect_is_logged_and_not_told(home: Path) -> None:
    """An exception nobody planned becomes INTERNAL: its text stays in the log."""

    async def body(server: Server, echo: Echo, channel: Any) -> None:
        single = channel.unary_unary("/test.Echo/Single")
        with capture_logs() as logs:
            code, details, trailing = await fault(single(b"defect"))
        assert (code, trailing["ds4-reason"]) == (grpc.StatusCode.INTERNAL, "INTERNAL")
        assert "secret" not in details
        assert [entry["event"] for entry in logs] == ["call failed"]
        assert str(logs[0]["exc_info"]) == "a secret detail"
        assert await single(b"hello") == b"hello"

    serve(home, body)


def test_what_is_not_built_says_so(home: Path) -> None:
    """A method of the contract without a body answers UNIMPLEMENTED with a reason."""

    async def body(server: Server, echo: Echo, channel: Any) -> None:
        code, _, trailing = await fault(channel.unary_unary("/test.Echo/Single")(b"absent"))
        assert (code, trailing["ds4-reason"]) == (grpc.StatusCode.UNIMPLEMENTED, "NOT_BUILT")
        code, _, _ = await fault(channel.unary_unary("/test.Echo/Unknown")(b""))
        assert code == grpc.StatusCode.UNIMPLEMENTED

    serve(home, body)


def test_a_client_that_leaves_closes_the_handler(home: Path) -> None:
    """Cancelling a stream closes the handler's generator, also while it waits to write."""

    async def body(server: Server, echo: Echo, channel: Any) -> None:
        for wait_s in (0.0, 0.2):
            echo.closed.clear()
            call = channel.unary_stream("/test.Echo/Stream")(b"forever")
            assert await call.read() == b"first"
            await asyncio.sleep(wait_s)  # without reading: the flow control window fills
            call.cancel()
            await asyncio.wait_for(echo.closed.wait(), 5)

    serve(home, body)


def test_messages_up_to_the_limit_are_received(home: Path) -> None:
    """The ids of a million tokens pass, and what is larger than the limit is refused."""

    async def body(server: Server, echo: Echo, channel: Any) -> None:
        single = channel.unary_unary("/test.Echo/Single")
        assert len(await single(bytes(16_000_000))) == 100
        code, _, _ = await fault(single(bytes(MAX_MESSAGE_BYTES + 1)))
        assert code == grpc.StatusCode.RESOURCE_EXHAUSTED

    serve(home, body)


def test_a_stop_lets_running_calls_end_within_its_grace(home: Path) -> None:
    """A running call ends by itself within the grace; one that does not is cancelled after it."""

    async def body(server: Server, echo: Echo, channel: Any) -> None:
        call = channel.unary_stream("/test.Echo/Stream")(b"forever")
        assert await call.read() == b"first"
        await asyncio.wait_for(server.stop(0.1), 5)
        await asyncio.wait_for(echo.closed.wait(), 5)

    serve(home, body)
