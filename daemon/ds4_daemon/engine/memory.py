"""What memory sessions may take, what is left of it, and what MLX holds.

The budget is a setting, or a share of what the machine had left once the weights were there. What
is left counts two ways, by the books and by what the system says now, and the smaller one holds.
MLX is asked only when something has loaded it: a CPU network runs without it.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from ds4_runtime.host import available_memory_bytes, host
from ds4_runtime.kv_keys import BLOCK_TOKENS

from ds4_daemon.errors import OverloadedError
from ds4_daemon.kvlink.layout import Layout
from ds4_daemon.sched.sequence import Sequence

# The rest is for the work of a step, for text, for the system, and for what was forgotten.
_SHARE = 0.8
# What the system must have left beyond a session's need: a step's own arrays take some of it.
SPARE_BYTES = 64 * 1024 * 1024
# An answer may be far longer than answers are; what it takes beyond this is counted as it comes.
ANSWER_TOKENS = 4096
# A state's arrays have twice the rows they hold when they grew last.
_GROWTH = 2
# Bounded states that a session keeps: the first, the last turns', the latest.
_BOUNDED = 5


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


def state_bytes(layout: Layout | None, tokens: int) -> int:
    """What a session of so many tokens takes at most: entries, bounded states, room to grow."""
    if layout is None:
        return 0
    blocks = -(-tokens // BLOCK_TOKENS)
    kept = layout.checkpoint(tokens).float_bytes(layout.head_dim, layout.index_dim)
    return _GROWTH * blocks * layout.block_bytes + (_GROWTH + _BOUNDED) * kept


@dataclass(slots=True)
class Memory:
    """`limit_bytes` for all sessions, those of requests and idle ones; 0: not limited (yet)."""

    setting_bytes: int | None = None
    available_bytes: Callable[[], int] = available_memory_bytes
    limit_bytes: int = 0
    layout: Layout | None = None

    def settle(self, layout: Layout | None) -> None:
        """Weights are in memory now: what is left is for sessions, if the setting is not less."""
        if layout is None:
            return  # of a model whose states cannot be foretold
        free = int(self.available_bytes() * _SHARE)
        self.limit_bytes = free if self.setting_bytes is None else self.setting_bytes
        self.layout = layout

    def need_bytes(self, prompt_tokens: int, max_tokens: int) -> int:
        """What a request of these lengths is expected to take."""
        return state_bytes(self.layout, prompt_tokens + min(max_tokens, ANSWER_TOKENS))

    def headroom_bytes(self, held_bytes: int, coming_bytes: int, idle_bytes: int) -> int:
        """What is left beside running sessions; idle ones would leave.

        `held_bytes` are what those take or will, `coming_bytes` the part of it that the system
        does not know of yet. Never less than 0.
        """
        by_system = self.available_bytes() + idle_bytes - coming_bytes - SPARE_BYTES
        by_books = self.limit_bytes - held_bytes if self.limit_bytes else by_system
        return max(0, min(by_books, by_system))

    def check(self, sequence: Sequence) -> None:
        """Set its need. Raises OverloadedError when it could not be met by an empty daemon."""
        sequence.need_bytes = self.need_bytes(sequence.prompt_tokens, sequence.max_tokens)
        if sequence.need_bytes > self.limit_bytes > 0:
            raise OverloadedError(
                "NEVER_FITS_MEMORY",
                f"a prompt of {sequence.prompt_tokens} tokens and its answer need about "
                f"{sequence.need_bytes / 1e6:.0f} MB of memory, and all sessions together may take "
                f"{self.limit_bytes / 1e6:.0f} MB",
                "shorten the prompt, ask for fewer tokens, or raise sessions_bytes in the "
                "daemon's settings",
            )


def reserved_bytes(sequence: Sequence) -> int:
    """What a running sequence takes or will: it may have grown beyond what was expected."""
    return max(sequence.need_bytes, sequence.state_bytes)
