"""A small cache with a clock of its own, for the tests that look inside it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from ds4_kvcache.cache import Cache
from ds4_kvcache.store import Store

from tests.unit.kvcache.small_cache import Clock, open_cache, open_store


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def cache(tmp_path: Path, clock: Clock) -> Iterator[Cache]:
    opened = open_cache(tmp_path, clock)
    yield opened
    opened.close(10)


@pytest.fixture
def store(cache: Cache) -> Store:
    return open_store(cache)
