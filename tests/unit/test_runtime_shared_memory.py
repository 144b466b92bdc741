"""Shared memory between processes: who can open it, and that nothing of it stays behind."""

import subprocess
import sys

import pytest
from ds4_runtime import shared_memory


def test_two_processes_share_it() -> None:
    """What another process writes is there, also after the name was taken away."""
    name, memory = shared_memory.create(100_000)
    code = (
        "from ds4_runtime import shared_memory\n"
        f"memory = shared_memory.attach({name!r})\n"
        f"shared_memory.unlink({name!r})\n"
        "memory[50_000:50_005] = b'hello'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert memory[50_000:50_005] == b"hello"
    with pytest.raises(FileNotFoundError):
        shared_memory.attach(name)


def test_names_are_new_and_short() -> None:
    """Two objects have two names, short enough for macOS."""
    made = [shared_memory.create(4096)[0] for _ in range(2)]
    for name in made:
        shared_memory.unlink(name)
    assert made[0] != made[1]
    assert all(len(name.encode()) < 31 for name in made)


@pytest.mark.parametrize("name", ["", "/etc/passwd", "/ds4-", "/ds4-0123456789abcdeg", "../x"])
def test_other_names_are_refused(name: str) -> None:
    """Only names that `create` makes are opened."""
    with pytest.raises(ValueError, match="no name"):
        shared_memory.attach(name)
