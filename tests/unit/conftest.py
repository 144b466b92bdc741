"""What unit tests share."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def home() -> Iterator[Path]:
    """A private directory with a path short enough for sockets, unlike tmp_path on macOS."""
    with tempfile.TemporaryDirectory(prefix="ds4-", dir="/tmp") as folder:
        yield Path(folder)
