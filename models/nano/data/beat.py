"""A step of a story, as the hand-written arcs list them and `world` tells them."""

from typing import NamedTuple


class Beat(NamedTuple):
    """One step of a story."""

    effects: tuple[str, ...]
    ways: tuple[str, ...]
