"""What passes between the engine and the link: what to restore, what came, what to save.

Plain values; they know neither gRPC nor the model.
"""

import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from ds4_daemon.kvlink.pack import Pieces
from ds4_daemon.misses import Miss


class CheckpointKind(enum.Enum):
    """Why a position gets a checkpoint; values as the contract numbers them."""

    ANCHOR = 1
    PROMPT_END = 2
    OUTPUT_END = 3
    LATTICE = 4


class Target(Protocol):
    """Where a restored prefix goes, from any thread; each place is asked for and filled once."""

    def block_places(self, block: int, count: int) -> Pieces:
        """Where the entries of so many blocks from `block` on belong, parts `[count, n, width]`."""

    def checkpoint_places(self) -> Pieces:
        """Where the bounded state belongs, parts `[1, n, width]` and `[1, n]`."""


class Wanted(NamedTuple):
    """A prefix to restore."""

    token_ids: tuple[int, ...]
    salt: str
    max_tokens: int  # longest prefix of use
    live_tokens: int  # what the caller has anyway
    recompute_s: Callable[[int], float]  # how long so many tokens take to compute; 0: unknown


class Restored(NamedTuple):
    """How that went: `tokens` 0 and no target on a miss. `miss` says why there is not more."""

    tokens: int
    target: Target | None
    miss: Miss
    took_s: float = 0.0
    nbytes: int = 0  # of the records


@dataclass(slots=True, eq=False)
class Chain:
    """One session's way of being saved; shared by the engine and the sender.

    Broken once a record of it was lost: a block without its parent is of no use. The engine then
    begins again from the first block, which costs a question and no transfer of what is there.
    """

    salt: str
    client: tuple[str, str] = ("", "")
    broken: bool = False  # a record was lost: what comes after it is of no use
    failed: bool = False  # one that was queued was: what is queued after it is of no use either


class Save(NamedTuple):
    """One record to save. A checkpoint has a kind and no tokens."""

    chain: Chain
    key: bytes
    parent_key: bytes
    depth: int  # blocks up to and with this one
    pieces: Pieces
    nbytes: int  # about its packed size
    token_ids: tuple[int, ...] = ()
    kind: CheckpointKind | None = None
