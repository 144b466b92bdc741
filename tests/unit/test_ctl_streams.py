"""ds4ctl at its edges: interrupts, closed and broken streams, full disks, a daemon that dies."""

import errno
import io
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ds4.v1 import inference_pb2
from ds4ctl.main import execute

from tests.unit import client_peer
from tests.unit.client_peer import Peer

Captured = pytest.CaptureFixture[str]


@pytest.fixture
def home(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DS4_HOME", str(home))
    return home


@pytest.fixture
def peer(home: Path) -> Iterator[Peer]:
    with client_peer.serving(home) as peer:
        yield peer


def start(*arguments: str) -> subprocess.Popen[str]:
    """ds4ctl as a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "ds4ctl", *arguments],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_ctrl_c_cancels_and_leaves_with_130(peer: Peer) -> None:
    """An interrupted run takes its request with it and says nothing more."""
    peer.script = client_peer.forever
    process = start("run", "x")
    assert process.stdout is not None
    assert process.stdout.read(6) == "on and"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=10)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert peer.left.wait(5)


def test_a_broken_pipe_is_quiet(peer: Peer) -> None:
    """When who reads the answer has gone, the request is cancelled without a word."""
    peer.script = client_peer.forever
    process = start("run", "x")
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.read(6)
    process.stdout.close()
    assert peer.left.wait(10)
    assert process.stderr.read() == ""
    process.stderr.close()
    assert process.wait(10) == 1


@pytest.mark.parametrize(("closed", "code"), [(">&-", 0), ("2>&-", 0), ("<&-", 0)])
def test_a_closed_stream_is_no_reason_to_fail(peer: Peer, closed: str, code: int) -> None:
    """Started with a standard stream closed, a command does its work without it."""
    command = f'"{sys.executable}" -m ds4ctl run hello {closed}'
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert len(peer.requests) == 1


def test_an_argument_that_is_no_text_is_wrong_usage(peer: Peer) -> None:
    """Bytes that are not UTF-8 are refused; UTF-8 is understood in any locale."""
    command = [sys.executable.encode(), b"-m", b"ds4ctl", b"run"]
    done = subprocess.run([*command, b"\xff"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "UTF-8" in done.stderr
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    subprocess.run([*command, "hé".encode()], env=os.environ | plain, check=True)
    assert peer.requests[0].prompt.conversation.messages[-1].content == "hé"


def test_a_full_disk_is_told(peer: Peer, monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    """Output that cannot be written is one sentence and exit code 1."""

    class Full(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(sys, "stdout", Full())
    assert execute(["run", "x"]) == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith("ds4ctl: input or output failed")


def test_a_daemon_that_dies_is_noticed_quietly(peer: Peer) -> None:
    """gRPC's own log lines do not reach the terminal; the error does."""

    def script(request: Any, context: Any) -> Iterator[inference_pb2.GenerateEvent]:
        yield client_peer.accepted()
        yield client_peer.content("half")
        os.write(gone, b"x")
        peer.left.wait(10)

    read, gone = os.pipe()
    peer.script = script
    process = start("run", "x")
    os.read(read, 1)
    peer.close()
    out, err = process.communicate(timeout=10)
    assert out == "half\n"
    assert process.returncode != 0
    assert len(err.splitlines()) <= 2
    assert err.startswith("ds4ctl: ")
