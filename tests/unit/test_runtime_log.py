"""ds4_runtime.log and host: lines for people or for programs, and facts of the machine."""

import io
import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
from ds4_runtime import log
from ds4_runtime.host import available_memory_bytes, host, resident_bytes


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    root.handlers.clear()
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_a_pipe_gets_one_json_object_a_line() -> None:
    """Fields, bound ones too, are keys; the phrase is `event`."""
    out = io.StringIO()
    log.configure("daemon", stream=out)
    with log.bound(request_id="r7"):
        structlog.get_logger().info("prefix restored", blocks=12)
    structlog.get_logger().info("stopped")
    first, second = (json.loads(line) for line in out.getvalue().splitlines())
    assert first.pop("timestamp").endswith("Z")
    assert first == {
        "service": "daemon", "event": "prefix restored", "blocks": 12,
        "request_id": "r7", "level": "info",
    }  # fmt: skip
    assert "request_id" not in second


def test_a_terminal_gets_lines_for_people() -> None:
    """On a terminal the phrase is read first, not parsed."""
    out = Terminal()
    log.configure("daemon", stream=out)
    structlog.get_logger().info("prefix restored", blocks=12)
    assert "prefix restored" in out.getvalue()
    assert not out.getvalue().startswith("{")


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_a_traceback_tells_no_values(stream: type[io.StringIO]) -> None:
    """Where it failed is logged; what clients sent, which local variables hold, is not."""
    out = stream()
    log.configure("daemon", stream=out)

    def fail(prompt: str) -> None:
        raise ValueError(f"{len(prompt)} characters")

    try:
        fail("my " + "secret")
    except ValueError:
        structlog.get_logger().exception("request lost")
    assert "test_a_traceback_tells_no_values" in out.getvalue()
    assert "9 characters" in out.getvalue()
    assert "my secret" not in out.getvalue()


def test_a_file_gets_json_and_libraries_write_there_too(tmp_path: Path) -> None:
    """What a library logs through `logging` has the same form, tracebacks included."""
    path = tmp_path / "daemon.log"
    log.configure("daemon", level="warning", file=path)
    structlog.get_logger().info("too quiet to be seen")
    try:
        int("broken")
    except ValueError:
        logging.getLogger("grpc").exception("it failed")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["event"] for line in lines] == ["it failed"]
    assert lines[0]["exception"][0]["exc_type"] == "ValueError"


def test_an_unknown_level_is_refused() -> None:
    """A level that does not exist is an error, not a default."""
    with pytest.raises(ValueError, match="chatty"):
        log.configure("daemon", level="chatty")


def test_the_machine_is_described() -> None:
    """Facts are positive and fit each other."""
    machine = host()
    assert machine.cpu_count >= 1
    assert machine.system
    assert machine.machine
    assert 0 < resident_bytes() < machine.memory_bytes
    assert 0 < available_memory_bytes() <= machine.memory_bytes
