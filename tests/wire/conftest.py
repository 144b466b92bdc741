"""Real daemons as processes of their own, on real sockets, with the stand-in model."""

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import grpc
import pytest
from ds4.v1 import admin_pb2, admin_pb2_grpc, inference_pb2_grpc
from ds4_client import Client
from ds4_daemon import standin
from ds4_runtime.address import Home, grpc_target

START_LIMIT_S = 30.0


class Daemon:
    """One ds4-daemon in a home of its own."""

    def __init__(self, home: Path, model: Path | None = None, *flags: str) -> None:
        self.home = Home(home)
        self.log = home / "daemon.log"
        self._command = [sys.executable, "-m", "ds4_daemon.main", *flags]
        if model is not None:
            self._command += ["--model", str(model)]
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> "Daemon":
        """Launch it and wait until it serves."""
        self.launch()
        with Client(self.home.path) as client:
            if not client.wait(START_LIMIT_S):
                pytest.fail(f"the daemon does not serve: {self.log.read_text()}")
        return self

    def launch(self) -> "subprocess.Popen[bytes]":
        """Launch it and wait for nothing."""
        self.home.path.mkdir(mode=0o700, exist_ok=True)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(self._command, stderr=log, env=self.environment)
        return self.process

    @property
    def environment(self) -> dict[str, str]:
        clean = {k: v for k, v in os.environ.items() if not k.startswith("DS4_")}
        # One thread for products: several that spin for each other take ten times as long where
        # other processes want the same cores.
        return clean | {"DS4_HOME": str(self.home.path), "OPENBLAS_NUM_THREADS": "1"}

    def run(self) -> "subprocess.CompletedProcess[str]":
        """Run it to its end, as for a start that must fail."""
        return subprocess.run(
            self._command,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=START_LIMIT_S,
        )

    def stop(self) -> int:
        """SIGTERM, and the exit code."""
        assert self.process is not None
        self.process.terminate()
        return self.process.wait(START_LIMIT_S)

    def kill(self) -> None:
        """End it whatever it does; pytest shows the log where a test failed."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            print(self.log.read_text())

    def client(self, name: str = "test") -> Client:
        return Client(self.home.path, name=name)

    @contextlib.contextmanager
    def channel(self) -> Iterator[grpc.Channel]:
        """The wire itself, for what a well-behaved client never sends."""
        options = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
        with grpc.insecure_channel(grpc_target(self.home.socket("daemon")), options) as channel:
            yield channel

    @contextlib.contextmanager
    def inference(self) -> Iterator[inference_pb2_grpc.InferenceStub]:
        with self.channel() as channel:
            yield inference_pb2_grpc.InferenceStub(channel)

    def status(self) -> admin_pb2.StatusResponse:
        with self.channel() as channel:
            return admin_pb2_grpc.AdminStub(channel).Status(admin_pb2.StatusRequest(), timeout=10)

    @property
    def steps(self) -> int:
        """Steps that the engine has run."""
        return int(self.status().engine.totals.steps)

    def wait_for_running(self, count: int, limit_s: float = 20.0) -> None:
        """Wait until exactly this many requests run or wait; no long one ends so soon by itself."""
        began_s = time.monotonic()
        while (now := len(self.status().engine.requests)) != count:
            if time.monotonic() - began_s > limit_s:
                pytest.fail(f"{now} requests run or wait, not {count}")
            time.sleep(0.01)


def refusal(error: Any) -> tuple[str, str]:
    """Reason and hint of a failed call, as they came over the wire."""
    found = {key: unquote(value) for key, value in error.trailing_metadata()}
    return found["ds4-reason"], found["ds4-hint"]


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> standin.StandIn:
    """The stand-in model, written once."""
    return standin.make(tmp_path_factory.mktemp("models") / "stand-in")


@pytest.fixture
def home() -> Iterator[Path]:
    """A home with a path that is short enough for sockets."""
    with tempfile.TemporaryDirectory(prefix="ds4-", dir="/tmp") as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def daemon(models: standin.StandIn) -> Iterator[Daemon]:
    """One serving daemon for the tests of a module."""
    with tempfile.TemporaryDirectory(prefix="ds4-", dir="/tmp") as folder:
        started = Daemon(Path(folder), models.gguf, "--drain-limit-s", "0")
        try:
            yield started.start()
        finally:
            started.kill()
