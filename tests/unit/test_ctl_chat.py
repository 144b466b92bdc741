"""`ds4ctl chat`: turn by turn through a pipe, and at a terminal with its keys."""

import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from ds4.v1 import inference_pb2, types_pb2

from tests.unit import client_peer
from tests.unit.client_peer import Peer


@pytest.fixture
def peer(home: Path) -> Iterator[Peer]:
    with client_peer.serving(home) as peer:
        yield peer


def piped(home: Path, typed: str, *options: str) -> subprocess.CompletedProcess[str]:
    """A chat whose lines come through a pipe."""
    return subprocess.run(
        [sys.executable, "-m", "ds4ctl", "chat", "--home", str(home), *options],
        input=typed, capture_output=True, text=True, timeout=20,
    )  # fmt: skip


# Makes the terminal it is given the controlling one, so that its keys send signals, then becomes
# ds4ctl.
_ON_TERMINAL = (
    "import os, sys; os.login_tty(int(sys.argv[1])); "
    "os.execv(sys.executable, [sys.executable, '-m', 'ds4ctl', *sys.argv[2:]])"
)


class Terminal:
    """ds4ctl at a terminal of its own."""

    def __init__(self, *arguments: str) -> None:
        self._master, slave = os.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-c", _ON_TERMINAL, str(slave), *arguments],
            pass_fds=[slave],
            env={**os.environ, "TERM": "xterm"},
        )
        os.close(slave)
        self._seen = ""

    def type(self, keys: str) -> None:
        # readline listens for signals a moment after its prompt is seen; no person is that quick.
        time.sleep(0.1)
        os.write(self._master, keys.encode())

    def until(self, text: str) -> str:
        """What is shown up to and with `text`, without control sequences."""
        deadline = time.monotonic() + 10
        while text not in self._seen:
            if not select.select([self._master], [], [], max(0.0, deadline - time.monotonic()))[0]:
                pytest.fail(f"{text!r} did not appear in {self._seen!r}")
            try:
                data = os.read(self._master, 4096)
            except OSError:  # the other end is closed
                data = b""
            if not data:
                pytest.fail(f"{text!r} did not appear before the end: {self._seen!r}")
            self._seen += re.sub(r"\x1b\[[?0-9;]*[a-zA-Z]|\r", "", data.decode())
        end = self._seen.index(text) + len(text)
        shown, self._seen = self._seen[:end], self._seen[end:]
        return shown

    def leave(self) -> int:
        try:
            return self.process.wait(10)
        finally:
            self.process.kill()
            os.close(self._master)


def said_in(request: inference_pb2.GenerateRequest) -> list[tuple[str, str]]:
    """The turns of a request, as (role, content)."""
    return [
        (types_pb2.Role.Name(one.role).removeprefix("ROLE_").lower(), one.content)
        for one in request.prompt.conversation.messages
    ]


def test_a_piped_chat_remembers_its_turns(peer: Peer) -> None:
    """Each line is a turn; the conversation so far, reasoning included, goes with it."""
    ran = piped(peer.home, "one\n\ntwo", "--system", "be", "--temperature", "0")
    assert ran.returncode == 0
    assert ran.stdout == "You said: one\nYou said: two\n"
    assert said_in(peer.requests[1]) == [
        ("system", "be"), ("user", "one"), ("assistant", "You said: one"), ("user", "two"),
    ]  # fmt: skip
    assert peer.requests[1].prompt.conversation.messages[2].reasoning == "Let me think."
    assert peer.requests[1].sampling.temperature == 0


def test_chat_json_is_one_object_an_answer(peer: Peer) -> None:
    """`chat --json` writes the record of `run --json` for each answer and nothing else."""
    ran = piped(peer.home, "one\ntwo\n", "--json")
    assert [json.loads(line)["text"] for line in ran.stdout.splitlines()] == [
        "You said: one",
        "You said: two",
    ]
    assert ran.stderr == ""


def test_commands_change_the_conversation(peer: Peer) -> None:
    """/system starts anew, /reset forgets, /think switches, // escapes, /quit leaves."""
    typed = "one\n/system be\ntwo\n/reset\n/think off\n//three\n/help\n/what\n/quit\nfour\n"
    ran = piped(peer.home, typed)
    assert ran.returncode == 0
    assert [said_in(request) for request in peer.requests] == [
        [("user", "one")],
        [("system", "be"), ("user", "two")],
        [("system", "be"), ("user", "/three")],
    ]
    assert peer.requests[1].prompt.conversation.thinking_mode == 0
    assert peer.requests[2].prompt.conversation.thinking_mode == types_pb2.THINKING_MODE_OFF
    assert "no such command: /what" in ran.stderr


def test_the_first_error_ends_a_piped_chat(peer: Peer) -> None:
    """A script does not go on after an answer that failed."""

    def script(request: Any, context: Any) -> Iterator[inference_pb2.GenerateEvent]:
        client_peer.refuse(
            context, grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL", "full", "wait"
        )
        yield client_peer.accepted()

    peer.script = script
    ran = piped(peer.home, "one\ntwo\n")
    assert ran.returncode == 1
    assert ran.stderr.splitlines() == ["ds4ctl: full", "  wait"]
    assert len(peer.requests) == 1


def test_a_chat_needs_a_daemon(home: Path) -> None:
    """It says so before a line is read, with exit code 3."""
    ran = piped(home, "")
    assert ran.returncode == 3
    assert "not running" in ran.stderr


def test_an_interrupt_stops_the_answer_of_a_piped_chat(peer: Peer) -> None:
    """SIGINT during an answer stops that one; the next line is answered."""
    peer.script = client_peer.forever
    process = subprocess.Popen(
        [sys.executable, "-m", "ds4ctl", "chat", "--home", str(peer.home)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("one\n")
    process.stdin.flush()
    assert process.stdout.read(6) == "on and"
    process.send_signal(signal.SIGINT)
    assert peer.left.wait(5)
    peer.script = client_peer.echo
    out, _ = process.communicate("two\n", timeout=10)
    assert out.endswith("You said: two\n")
    assert process.returncode == 0


def test_ctrl_c_stops_the_answer_and_not_the_chat(peer: Peer) -> None:
    """At a terminal the answer stops, its begin is kept, the chat goes on; Ctrl-D leaves."""
    peer.script = client_peer.forever
    terminal = Terminal("chat", "--home", str(peer.home))
    terminal.until("nano on cpu, 8,192 tokens of context")
    terminal.until("> ")
    terminal.type("one\r")
    terminal.until("on and on and ")
    terminal.type("\x03")
    terminal.until("stopped")
    assert peer.left.wait(5)
    peer.script = client_peer.echo
    terminal.until("> ")
    terminal.type("two\r")
    terminal.until("You said: two")
    terminal.until("> ")
    terminal.type("\x03")  # at the prompt it only says how to leave
    terminal.until("Ctrl-D leaves")
    terminal.until("> ")
    terminal.type("\x04")
    assert terminal.leave() == 0
    turns = said_in(peer.requests[1])
    assert turns[0] == ("user", "one")
    assert turns[1][0] == "assistant"
    assert turns[1][1].startswith("on and on")
    assert turns[2] == ("user", "two")


def test_an_error_at_a_terminal_costs_one_turn(peer: Peer) -> None:
    """The refused turn is dropped, the chat goes on."""

    def script(request: Any, context: Any) -> Iterator[inference_pb2.GenerateEvent]:
        client_peer.refuse(
            context, grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL", "full", "wait"
        )
        yield client_peer.accepted()

    peer.script = script
    terminal = Terminal("chat", "--home", str(peer.home))
    terminal.until("> ")
    terminal.type("one\r")
    terminal.until("ds4ctl: full")
    terminal.until("> ")
    peer.script = client_peer.echo
    terminal.type("two\r")
    terminal.until("You said: two")
    terminal.until("> ")
    terminal.type("\x04")
    assert terminal.leave() == 0
    assert said_in(peer.requests[1]) == [("user", "two")]


def test_lines_are_remembered_privately(peer: Peer) -> None:
    """Lines of a chat are found again in the next one, in a file that others cannot read."""
    terminal = Terminal("chat", "--home", str(peer.home))
    terminal.until("> ")
    terminal.type("a rare question\r")
    terminal.until("You said: a rare question")
    terminal.until("> ")
    terminal.type("\x04")
    assert terminal.leave() == 0
    history = peer.home / "chat_history"
    assert "a rare question" in history.read_text()
    assert history.stat().st_mode & 0o077 == 0
    terminal = Terminal("chat", "--home", str(peer.home))
    terminal.until("> ")
    terminal.type("\x1b[A\r")  # the up arrow
    terminal.until("You said: a rare question")
    terminal.until("> ")
    terminal.type("\x04")
    assert terminal.leave() == 0


def test_progress_and_reasoning_are_shown_at_a_terminal(peer: Peer) -> None:
    """While the prompt is computed its progress is shown, then reasoning, then the answer."""
    read, go = os.pipe()

    def script(request: Any, context: Any) -> Iterator[inference_pb2.GenerateEvent]:
        yield client_peer.accepted()
        yield client_peer.progress(1024, 4096)
        os.read(read, 1)
        yield client_peer.reasoning("Let me think.")
        yield client_peer.content("Done.")
        yield client_peer.finished()

    peer.script = script
    terminal = Terminal("run", "--home", str(peer.home), "x")
    terminal.until("prefill 1,024 of 4,096 tokens · 100 tok/s · 31 s left")
    os.write(go, b"x")
    shown = terminal.until("12 prompt tokens (4 found in memory)")
    assert shown.index("Let me think.\n") < shown.index("Done.\n")
    terminal.until("first after 31 ms")
    assert terminal.leave() == 0


def test_a_model_cannot_steer_the_terminal(peer: Peer) -> None:
    """Control characters of an answer are shown at a terminal, and exact in a pipe."""
    sneaky = "\x1b]0;title\x07\x9b2Jä\r\n\tz"

    def script(request: Any, context: Any) -> Iterator[inference_pb2.GenerateEvent]:
        yield client_peer.accepted()
        yield client_peer.content(sneaky)
        yield client_peer.finished()

    peer.script = script
    terminal = Terminal("run", "--home", str(peer.home), "x")
    terminal.until("\ufffd]0;title\ufffd\ufffd2Jä\n\tz\n")
    terminal.until("first after")
    assert terminal.leave() == 0
    command = [sys.executable, "-m", "ds4ctl", "run", "--home", str(peer.home), "x"]
    assert subprocess.run(command, capture_output=True).stdout == f"{sneaky}\n".encode()
