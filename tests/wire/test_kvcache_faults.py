"""A round of every fault of `bench.kv_faults` against a real service: no wrong byte, ever."""

from collections.abc import Callable

import pytest

from bench.kv_faults import FAULTS, Patient, round_of


@pytest.mark.parametrize("fault", FAULTS, ids=lambda one: one.__name__)
def test_no_wrong_bytes(fault: Callable[[Patient], None]) -> None:
    """After this fault each prompt comes back byte for byte or not at all, and is taken anew."""
    counts = round_of(fault, seed=7)
    assert counts["rounds"] == 1
    assert counts["errors"] == 0
