"""Passes of models that tests make up: some units that do nothing, then `forward` whole."""

import time
from collections.abc import Callable

import numpy as np

Rows = list[np.ndarray | None]


class UnitPass:
    """What `model.network.Pass` is to the engine. Each unit takes `unit_s`."""

    def __init__(self, forward: Callable[[], Rows], units: int = 3, unit_s: float = 0.0) -> None:
        self.units = units
        self.done_units = 0
        self.results: Rows = []
        self._forward = forward
        self._unit_s = unit_s

    def advance(self, units: int) -> bool:
        for _ in range(min(units, self.units - self.done_units)):
            time.sleep(self._unit_s)
            self.done_units += 1
        if self.done_units == self.units:
            self.results = self._forward()
        return self.done_units == self.units

    def wait(self) -> None:
        pass
