"""Buffers of a session's rows that hold their first rows in the memory of another one."""

import numpy as np
from ds4_daemon.kernels.numpy_ops import NumpyRows


def rows(values: np.ndarray) -> NumpyRows:
    made = NumpyRows(values.shape[1])
    made.append(values)
    return made


def random(count: int, seed: int) -> np.ndarray:
    return np.random.RandomState(seed).standard_normal((count, 8)).astype(np.float32)


def test_sharing_changes_the_memory_and_nothing_else() -> None:
    """All that can be asked of a buffer is as before, and both go on without seeing each other."""
    first = random(100, 1)
    one, other = rows(np.concatenate([first, random(30, 2)])), rows(first)
    expected = one.view().copy()
    before = sum(one.held.values())
    one.share(other, 90)
    assert sum((one.held | other.held).values()) < before + other.nbytes
    assert set(other.held) < set(one.held)
    assert len(one) == 130
    for start, stop in ((0, 90), (10, 20), (95, 130), (80, 130), (0, 130)):
        assert np.array_equal(one.part(start, stop), expected[start:stop])
    other.append(random(10, 3))
    more = random(5, 4)
    assert np.array_equal(one.append(more), np.concatenate([expected, more]))
    assert not set(other.held) & set(one.held)
    assert np.array_equal(other.view()[:100], first)


def test_only_equal_rows_are_shared() -> None:
    """One bit that differs keeps a buffer as it is, also where the values compare equal."""
    first = random(100, 1)
    other = rows(first)
    for row, value in ((50, first[50, 0] + 1), (60, -0.0)):
        values = first.copy()
        other_values = first.copy()
        values[row, 0], other_values[60, 0] = value, 0.0 if row == 60 else first[60, 0]
        one, other = rows(values), rows(other_values)
        one.share(other, 100)
        assert not set(other.held) & set(one.held)
        one.share(other, 40)
        assert set(other.held) < set(one.held)


def test_a_third_buffer_shares_what_the_second_shares() -> None:
    """The memory of the first is all that is held, also once it is gone itself."""
    first = random(100, 1)
    one, two, three = rows(first), rows(first), rows(np.concatenate([first, random(1, 2)]))
    two.share(one, 100)
    three.share(two, 100)
    (memory,) = one.held
    assert memory in two.held
    assert memory in three.held
    del one, two
    assert np.array_equal(three.view()[:100], first)
