"""The record that travels with a request: made by `rpc`, ordered by `policy`, advanced by `engine`.

Owns the states a sequence passes through and its counters. A prefill chunk and a decoded token are
the same to it: ids that exist but whose state does not (`pending_tokens`). Knows no array of the
model. After it is submitted only the engine's thread writes it, `stop_requested` aside.
"""

import enum
from array import array
from dataclasses import dataclass, field

from ds4_daemon.misses import Miss
from ds4_daemon.sched.sampling import Sampling


class State(enum.Enum):
    """Where a sequence is."""

    WAITING = enum.auto()
    RESTORE = enum.auto()  # its prefix comes from the KV cache; it runs no steps
    PREFILL = enum.auto()
    DECODE = enum.auto()
    DONE = enum.auto()


class Priority(enum.IntEnum):
    """How urgent a request is, most first; numbered as in the contract."""

    INTERACTIVE = 1
    NORMAL = 2
    BACKGROUND = 3


class Finish(enum.Enum):
    """Why a sequence ended."""

    STOP = enum.auto()
    LENGTH = enum.auto()
    STOP_STRING = enum.auto()
    CANCELLED = enum.auto()
    DEADLINE = enum.auto()
    DRAINED = enum.auto()
    ERROR = enum.auto()


@dataclass(frozen=True, slots=True)
class Client:
    """Who asked."""

    name: str = ""
    instance: str = ""


@dataclass(frozen=True, slots=True)
class CacheUse:
    """How a request may use what others computed. Nothing is shared across salts."""

    salt: str = ""
    bypass: bool = False  # restore nothing
    no_save: bool = False


@dataclass(slots=True, eq=False)
class Sequence:
    """One request in the engine. Times are of `time.monotonic`, None until they come."""

    request_id: str
    ids: "array[int]"  # the prompt, then each generated token; never empty
    sampling: Sampling
    max_tokens: int  # most to generate; the prompt and these fit the context
    stop_ids: frozenset[int] = frozenset()
    client: Client = Client()
    priority: int = 0  # of `Priority`; 0: not said, which is normal
    arrived_s: float = 0.0
    deadline_s: float | None = None
    cache: CacheUse = CacheUse()
    anchor_tokens: int = 0  # where what other conversations begin with too ends; 0: unknown
    session: str = ""  # name of the session that it extends and keeps; empty: none

    prompt_tokens: int = field(init=False)
    computed_tokens: int = 0  # ids[:computed_tokens] are in the session
    state: State = State.WAITING
    finish: Finish | None = None
    # Set from any thread; the engine acts on it before its next step.
    stop_requested: Finish | None = None
    detached: bool = False  # nobody reads its events now; set by `rpc`
    told: tuple[int, ...] = ()  # generated before a restart: chosen again, whatever the logits say
    last_step: int = -1  # the last one that did something for it
    served_s: float = 0.0  # when that was
    chunk_share: float = 0.0  # how much of the chunk after `computed_tokens` is computed, 0 to 1
    chunk_tokens: int = 0  # of that chunk
    need_bytes: int = 0  # memory that its state is expected to take
    cuts: tuple[int, ...] = ()  # positions where a chunk must end, ascending
    cached_live_tokens: int = 0  # of the prompt, taken from a session in memory
    cached_restored_tokens: int = 0  # or restored from the KV cache
    miss: Miss = Miss.NONE  # why there were not more
    state_bytes: int = 0
    prefill_began_s: float | None = None  # after waiting and restoring
    started_s: float | None = None
    first_token_s: float | None = None
    last_token_s: float | None = None

    def __post_init__(self) -> None:
        self.prompt_tokens = len(self.ids)

    def stop(self, finish: Finish) -> None:
        """Ask for its end; from any thread. The first reason given counts."""
        if self.stop_requested is None:
            self.stop_requested = finish

    @property
    def cached_tokens(self) -> int:
        """Tokens of the prompt that were not computed."""
        return self.cached_live_tokens + self.cached_restored_tokens

    @property
    def prefilled_tokens(self) -> int:
        """Tokens of the prompt whose state exists, and the computed share of the next chunk."""
        done = self.computed_tokens + int(self.chunk_share * self.chunk_tokens)
        return min(done, self.prompt_tokens)

    @property
    def generated_tokens(self) -> int:
        """Tokens chosen so far."""
        return len(self.ids) - self.prompt_tokens

    @property
    def pending_tokens(self) -> int:
        """Ids whose state is not computed yet: the rest of the prompt, or the last token."""
        return len(self.ids) - self.computed_tokens
