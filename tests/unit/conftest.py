"""What unit tests share."""

import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

# Run in the background of a shell, a process ignores SIGINT, and so would the children under test.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def home() -> Iterator[Path]:
    """A private directory with a path short enough for sockets, unlike tmp_path on macOS."""
    with tempfile.TemporaryDirectory(prefix="ds4-", dir="/tmp") as folder:
        yield Path(folder)
