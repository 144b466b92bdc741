"""The way to a process of ds4: its address, the options of a channel, and why a connection failed.

Everything that `Client` and `AsyncClient` share and that is not the contract itself. A call that
found no daemon is explained by looking at the socket, because gRPC says UNAVAILABLE for all of it.
"""

import errno
import json
import os
import socket
import sys
from pathlib import Path

import grpc
from ds4_runtime.address import Home, grpc_target
from ds4_runtime.errors import AddressError

from ds4_client.errors import (
    AccessError,
    ConfigurationError,
    Ds4Error,
    FailedCall,
    NotRunningError,
    from_call,
    told,
)

# The ids and log probabilities of a long answer exceed gRPC's 4 MB; the daemon's limit is the same.
MAX_MESSAGE_BYTES = 64 * 1024 * 1024

# Only what may come twice: reading, and a Cancel, whose second finds the request already gone.
# A second Generate could run beside the first.
_SAFE_TO_REPEAT = {
    "ds4.v1.Inference": ("Tokenize", "Detokenize", "Render", "Cancel", "Estimate"),
    "ds4.v1.Admin": ("Status",),
    "ds4.v1.Sessions": ("ListSessions",),
    "ds4.v1.KvCache": ("Stat", "List", "Inspect"),
}
# Short, for it bridges a restart of the socket only: a daemon that is not there is said at once.
_RETRY = {
    "maxAttempts": 3,
    "initialBackoff": "0.05s",
    "maxBackoff": "0.2s",
    "backoffMultiplier": 2,
    "retryableStatusCodes": ["UNAVAILABLE"],
}
_SERVICE_CONFIG = {
    "methodConfig": [
        {
            "name": [
                {"service": service, "method": method}
                for service, methods in _SAFE_TO_REPEAT.items()
                for method in methods
            ],
            "retryPolicy": _RETRY,
        }
    ]
}

OPTIONS: tuple[tuple[str, str | int], ...] = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.service_config", json.dumps(_SERVICE_CONFIG)),
    # Despite its name, how long a connection may take to come about: where nobody listens it is
    # refused at once, but a daemon on a busy machine may need a second for its first word.
    ("grpc.min_reconnect_backoff_ms", 5_000),
    # A daemon that comes back is found within a second, not within gRPC's two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    # Two clients of one process do not share a connection by accident.
    ("grpc.use_local_subchannel_pool", 1),
)


class Address:
    """Where a daemon is to be found, or with `service` "kvcache" the KV cache."""

    def __init__(self, home: str | os.PathLike[str] | None, service: str = "daemon") -> None:
        self.program = f"ds4-{service}"
        try:
            self.home = Home.find(home)
            self.socket = self.home.socket(service)
        except AddressError as error:
            raise ConfigurationError(error.reason, error.message, error.hint) from error
        self.target = grpc_target(self.socket)
        # A home that is not the one of the environment has to be named to the daemon too.
        place = f"DS4_HOME='{self.home.path}' " if home else ""
        self._start = f"start it with `{place}{self.program}`"

    def explain(self, call: FailedCall) -> Ds4Error:
        """The error that a failed call stands for, with the reason of a failed connection."""
        if call.code() is not grpc.StatusCode.UNAVAILABLE or "ds4-reason" in told(call):
            return from_call(call)
        return _why_unavailable(self.program, self.socket, call.details() or "", self._start)


def _why_unavailable(program: str, path: Path, details: str, start: str) -> Ds4Error:
    try:
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(1.0)
            probe.connect(os.fspath(path))
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            return NotRunningError("NOT_RUNNING", f"{program} is not running at {path}", start)
        if error.errno == errno.ECONNREFUSED:
            return NotRunningError(
                "CONNECTION_REFUSED",
                f"{program} is not running: it left its socket {path} behind",
                start,
            )
        if error.errno in (errno.EACCES, errno.EPERM):
            return AccessError(
                "ACCESS_DENIED",
                f"the socket {path} belongs to another user",
                "set DS4_HOME to a home of yours",
            )
        details = error.strerror or details
    return NotRunningError(
        "CONNECTION_LOST",
        f"the connection to {program} broke off: {details}",
        "look whether it is running with `ds4ctl status`",
    )


def program_name() -> str:
    """What this program calls itself to the daemon, when nobody says otherwise."""
    path = Path(sys.argv[0] or "python")
    name = path.parent.name if path.stem == "__main__" else path.stem
    return name or "python"
