"""What MLX holds, and what the device is called: counters that any thread may read.

MLX is asked only when something has loaded it: a CPU network runs without it.
"""

import sys
from typing import Any, NamedTuple

from ds4_runtime.host import host


class MlxMemory(NamedTuple):
    """All zero while MLX is not in use."""

    active_bytes: int = 0
    peak_bytes: int = 0
    cache_bytes: int = 0


def mlx_memory() -> MlxMemory:
    """What MLX's allocator says now."""
    mx: Any = sys.modules.get("mlx.core")
    if mx is None:
        return MlxMemory()
    return MlxMemory(mx.get_active_memory(), mx.get_peak_memory(), mx.get_cache_memory())


def device_name(device: str) -> str:
    """What the device calls itself: the GPU's name, or the machine's processor type."""
    if device == "cpu":
        return host().machine
    import mlx.core as mx

    return str(mx.device_info().get("device_name", device))
