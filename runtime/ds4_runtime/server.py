"""A gRPC server on the Unix socket of a tenancy, with health, reflection and errors that say why.

    server = Server(tenancy, {RequestError: StatusCode.INVALID_ARGUMENT, ...})
    server.add("ds4.v1.Inference", add_InferenceServicer_to_server, servicer)
    await server.start()                    # answers; health says NOT_SERVING
    await server.set_serving(True)          # once there is something to serve
    await server.stop(grace_s=10)           # refuses new calls, ends what runs after the grace

The socket is 0600 inside a 0700 directory from its first moment. The server does not know what it
serves.
"""

import os
import socket
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import grpc
import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from ds4_runtime.address import grpc_target
from ds4_runtime.errors import AddressError, AlreadyRunningError
from ds4_runtime.faults import FaultInterceptor
from ds4_runtime.lifecycle import Tenancy

# gRPC's default of 4 MB is less than the ids of a million tokens.
MAX_MESSAGE_BYTES = 64 * 1024 * 1024

_S = TypeVar("_S")


class Server:
    """One process, one socket, several services."""

    def __init__(
        self, tenancy: Tenancy, status_codes: Mapping[type[Exception], grpc.StatusCode]
    ) -> None:
        """`status_codes` gives the status of each error class; a subclass has that of its base."""
        self.socket = tenancy.socket
        self._server = grpc.aio.server(
            interceptors=[FaultInterceptor(status_codes)],
            options=[
                ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
                ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
            ],
        )
        self._health = health.aio.HealthServicer()
        self._names: list[str] = []

    def add(self, name: str, register: Callable[[_S, grpc.aio.Server], None], servicer: _S) -> None:
        """Serve `servicer` as `name` ("ds4.v1.Inference"); `register` is the generated function."""
        register(servicer, self._server)
        self._names.append(name)

    async def start(self) -> None:
        """Bind and answer.

        Raises AddressError where the socket cannot be bound, AlreadyRunningError where somebody
        answers on it.
        """
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflected = (*self._names, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(reflected, self._server)
        await self.set_serving(False)
        self._bind()
        await self._server.start()

    def _bind(self) -> None:
        # The tenancy says that no other process serves here, so a socket that exists is stale,
        # unless somebody removed the lock: gRPC would take the socket from under the other.
        try:
            if stat.S_ISSOCK(self.socket.lstat().st_mode):
                if _answers(self.socket):
                    raise AlreadyRunningError(
                        f"another process answers on {self.socket}, though the lock is free",
                        f"stop it (`fuser {self.socket}` tells its pid), then start again",
                        0,
                    )
                self.socket.unlink()
        except FileNotFoundError:
            pass
        umask = os.umask(0o177)
        try:
            self._server.add_insecure_port(grpc_target(self.socket))
        except RuntimeError as error:
            raise AddressError(
                "SOCKET_NOT_BOUND",
                f"the socket {self.socket} cannot be bound: {error}",
                f"remove {self.socket} and start again",
            ) from error
        finally:
            os.umask(umask)

    async def set_serving(self, serving: bool) -> None:
        """What the health service says, of each service and of the whole."""
        known = health_pb2.HealthCheckResponse
        for name in ("", *self._names):
            await self._health.set(name, known.SERVING if serving else known.NOT_SERVING)

    async def stop(self, grace_s: float) -> None:
        """Refuse new calls at once, wait for running ones up to `grace_s`, then cancel them."""
        await self._health.enter_graceful_shutdown()
        await self._server.stop(grace_s)


def _answers(path: Path) -> bool:
    """Whether a process listens on this socket."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except OSError:
            return False
        return True
