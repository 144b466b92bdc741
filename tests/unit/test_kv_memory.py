"""Memory of restored sessions: lent while anything looks at it, then the next one's, then gone."""

import numpy as np
import pytest
from ds4_daemon.kvlink import memory
from ds4_daemon.kvlink.memory import Memory
from numpy.typing import NDArray

SIZE = 3_000_000


def address(array: NDArray[np.generic]) -> int:
    return array.ctypes.data


def test_memory_is_lent_until_the_last_view_of_it_goes() -> None:
    """A view of a view keeps it; then the next session gets the same, aligned to a cache line."""
    lender = Memory()
    whole = lender.take(SIZE)
    assert (len(whole), address(whole) % 64) == (SIZE, 0)
    place = address(whole)
    rows = whole[: SIZE // 4 * 4].view(np.float32).reshape(-1, 50)[100:]
    del whole
    other = lender.take(SIZE)
    assert abs(address(other) - place) >= SIZE
    assert lender.spare_bytes == 0
    del other
    again = lender.take(SIZE - 100)
    assert abs(address(again) - place) >= SIZE
    del rows
    assert lender.spare_bytes >= SIZE
    assert address(lender.take(SIZE)) == place


def test_one_piece_is_kept_and_the_largest() -> None:
    """What is spare is one session's at most, and only where it fits is it taken."""
    lender = Memory()
    pieces = [lender.take(size) for size in (SIZE, 3 * SIZE, 2 * SIZE)]
    pieces.clear()
    assert 3 * SIZE <= lender.spare_bytes < 4 * SIZE
    small = lender.take(SIZE)  # would waste two thirds of it
    assert lender.spare_bytes == 0
    del small
    assert SIZE <= lender.spare_bytes < 2 * SIZE


def test_what_nobody_uses_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a while without a restore, and at once where it is too much to keep."""
    lender = Memory()
    lender.take(SIZE)
    lender.forget_idle()
    assert lender.spare_bytes
    lender.forget_idle(0)
    assert not lender.spare_bytes
    monkeypatch.setattr(memory, "_MOST_BYTES", SIZE)
    lender.take(SIZE)
    assert not lender.spare_bytes
