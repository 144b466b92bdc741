"""One session of the prefix cache, and how it is saved.

A session is the model's state, its token ids, the boundaries to which it can be taken back, and how
much of it the KV cache service was given. Used by `prefix` alone, on the engine's thread.
"""

import time
from array import array
from collections.abc import Collection
from dataclasses import dataclass, field

import numpy as np
from ds4_runtime.kv_keys import BLOCK_TOKENS, block_key, pack_tokens, root_key
from numpy.typing import NDArray

from ds4_daemon.engine.labels import Label
from ds4_daemon.engine.prefix_state import (
    Bounded,
    Restoring,
    blocks_pieces,
    checkpoint_pieces,
    held,
)
from ds4_daemon.kvlink.link import Link
from ds4_daemon.kvlink.records import Chain, CheckpointKind, Save
from ds4_daemon.model.state import SessionState

# Blocks between the checkpoints of a long prefill: a crash loses less than this, and at V4's sizes
# they are a fifth of what is written (§0 of the design: 440 MB a 100k tokens).
LATTICE_TOKENS = 4096
# Every fourth is what is left of the lattice after an hour; the others are not worth their bytes
# where the turn of a conversation ended half a step before.
_KEPT_TOKENS = 4 * LATTICE_TOKENS
_NEAR_TOKENS = LATTICE_TOKENS // 2

Ids = NDArray[np.int32]


@dataclass(slots=True, eq=False)
class Session:
    """`snapshots` are bounded states by their boundary; `latest` that of decoding, kept as it may
    become the end of the output."""

    state: SessionState
    salt: str
    no_save: bool
    client: tuple[str, str]
    label: Label = field(default_factory=Label)
    used_s: float = field(default_factory=time.monotonic)  # when its last request ended
    ids: "array[int]" = field(default_factory=lambda: array("i"))
    snapshots: dict[int, Bounded] = field(default_factory=dict)
    latest: Bounded | None = None
    cuts: dict[int, CheckpointKind] = field(default_factory=dict)
    keys: list[bytes] = field(default_factory=list)
    chain: Chain = field(init=False)
    whole: SessionState | None = None  # what a pass began with, which may be dropped midway
    spare: bool = False  # a fork that no step has changed yet: its source has all of it
    saved_blocks: int = 0
    saved_checkpoints: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.chain = Chain(self.salt, self.client)

    @property
    def length(self) -> int:
        """Tokens in the state."""
        return self.state.length

    @property
    def held(self) -> dict[int, int]:
        """Bytes of each piece of memory that goes with it, as `RowBuffer.held`."""
        pieces = held(self.state)
        for taken in (*self.snapshots.values(), self.latest):
            pieces |= taken.held if taken is not None else {}
        return pieces

    def usable(self, ids: Ids) -> tuple[int, bool]:
        """How much of a prompt it saves, and whether that is all of the session."""
        common = min(self.common(ids), len(ids) - 1)  # the last one's logits are wanted
        if 0 < self.length <= common:
            return self.length, True
        return self.deepest(common), False

    def usable_boundary(self, ids: Ids) -> int:
        """The same without taking it whole."""
        return self.deepest(min(self.common(ids), len(ids) - 1))

    def boundary(self, tokens: int) -> Bounded:
        """The bounded state kept there."""
        if self.latest is not None and self.latest.tokens == tokens:
            return self.latest
        return self.snapshots[tokens]

    def resumed(self, client: tuple[str, str], *, no_save: bool) -> None:
        """A new request goes on with it: of the old one's boundaries only the last stay."""
        self.client = client
        if self.latest is not None:
            self.snapshots[self.latest.tokens] = self.latest
            self.latest = None
        self.no_save = no_save
        self._thin()

    def forked(self, source: "Session", tokens: int) -> None:
        """What is known of the source up to `tokens` holds for this one too."""
        self.spare = True
        self.ids = source.ids[:tokens]
        self.snapshots = {at: s for at, s in source.snapshots.items() if at <= tokens}
        if source.latest is not None and source.latest.tokens <= tokens:
            self.snapshots[source.latest.tokens] = source.latest
        blocks = tokens // BLOCK_TOKENS
        self.keys = source.keys[:blocks]
        if not source.chain.broken:
            self.saved_blocks = min(source.saved_blocks, blocks)
            self.saved_checkpoints = {at for at in source.saved_checkpoints if at <= tokens}
        self._thin()

    def restored(self, target: Restoring, ids: "array[int]") -> None:
        """Take over what came from the service."""
        taken = target.into(self.state)
        self.ids = ids
        self.snapshots[taken.tokens] = taken
        self.saved_blocks = taken.tokens // BLOCK_TOKENS
        self.saved_checkpoints.add(taken.tokens)

    def extend_keys(self, digest: bytes, tokens: int) -> None:
        """Name the blocks up to `tokens`."""
        parent = self.keys[-1] if self.keys else root_key(digest, self.salt)
        for block in range(len(self.keys), tokens // BLOCK_TOKENS):
            at = block * BLOCK_TOKENS
            parent = block_key(parent, pack_tokens(self.ids[at : at + BLOCK_TOKENS]))
            self.keys.append(parent)

    def common(self, ids: Ids) -> int:
        """Tokens that both begin with, of those whose state exists."""
        count = min(self.length, len(ids))
        # Of a copy: an array with a view on it cannot grow, and another thread may ask.
        same = np.frombuffer(self.ids[:count], np.int32) == ids[:count]
        return count if same.all() else int(same.argmin())

    def deepest(self, tokens: int) -> int:
        """The last position up to `tokens` that it can be taken back to; 0: none."""
        latest = self.latest
        boundaries = [*self.snapshots, latest.tokens if latest is not None else 0]
        return max((at for at in boundaries if at <= tokens), default=0)

    def _thin(self) -> None:
        """Keep the first boundary, which is what conversations share, and the last two turns'."""
        for at in sorted(self.snapshots)[1:-3]:
            del self.snapshots[at]


def is_spared(tokens: int, saved: Collection[int]) -> bool:
    """Whether a step of the lattice needs no checkpoint beside those that are saved."""
    last = max((at for at in saved if at < tokens), default=0)
    return tokens % _KEPT_TOKENS != 0 and tokens - last < _NEAR_TOKENS


class Saver:
    """Hands what is new of a session to the link."""

    def __init__(self, link: Link) -> None:
        self._link = link

    def save(self, session: Session, taken: Bounded, kind: CheckpointKind) -> None:
        """The blocks up to a boundary and its checkpoint, as far as they were not handed over."""
        link = self._link
        if not link.store.connected:  # what is not saved now is saved with what comes after it
            link.look()
            return
        if session.no_save or taken.tokens < max(link.store.min_tokens, BLOCK_TOKENS):
            return
        if session.chain.broken:
            session.chain = Chain(session.salt, session.client)
            session.saved_blocks = 0
            session.saved_checkpoints.clear()
        if taken.tokens in session.saved_checkpoints:
            return
        if kind is CheckpointKind.LATTICE and is_spared(taken.tokens, session.saved_checkpoints):
            return
        session.extend_keys(link.digest, taken.tokens)
        layout, chain, blocks = link.layout, session.chain, taken.tokens // BLOCK_TOKENS
        size = layout.packed_bytes(layout.block)
        first = session.saved_blocks
        pieces = blocks_pieces(session.state, layout, first, blocks) if first < blocks else []
        for block in range(first, blocks):
            at = block * BLOCK_TOKENS
            one = Save(
                chain,
                session.keys[block],
                session.keys[block - 1] if block else root_key(link.digest, session.salt),
                block + 1,
                pieces[block - first],
                size,
                tuple(session.ids[at : at + BLOCK_TOKENS]),
            )
            if not link.save(one):
                return
            session.saved_blocks = block + 1
        self._save_checkpoint(session, taken, kind)

    def _save_checkpoint(self, session: Session, taken: Bounded, kind: CheckpointKind) -> None:
        link, blocks = self._link, taken.tokens // BLOCK_TOKENS
        session.extend_keys(link.digest, taken.tokens)
        size = link.layout.packed_bytes(link.layout.checkpoint(taken.tokens))
        last = session.keys[blocks - 1]
        parent = session.keys[blocks - 2] if blocks > 1 else root_key(link.digest, session.salt)
        pieces = checkpoint_pieces(taken)
        if link.save(Save(session.chain, last, parent, blocks, pieces, size, kind=kind)):
            session.saved_checkpoints.add(taken.tokens)

    def confirm(self, session: Session) -> None:
        """Hand over once more the last checkpoint that was saved of a session that is used again.

        Mostly the service still has it, and nothing is sent. Where it was purged or evicted with
        its blocks it is refused: that breaks the chain, and all of it is saved with what comes.
        """
        kept = [at for at in session.saved_checkpoints if at in session.snapshots]
        if kept and self._link.store.connected and not (session.no_save or session.chain.broken):
            self._save_checkpoint(session, session.snapshots[max(kept)], CheckpointKind.PROMPT_END)

    def save_end(self, session: Session) -> None:
        """The end of what was generated, and what a full queue kept from being saved before."""
        taken = session.latest
        kind = CheckpointKind.OUTPUT_END
        if taken is None and session.snapshots:
            taken, kind = session.snapshots[max(session.snapshots)], CheckpointKind.PROMPT_END
        if taken is not None:
            self.save(session, taken, kind)
