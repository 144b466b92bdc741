"""What is worth least: which checkpoints and blocks go when room is needed, and in which order.

The value of a checkpoint is the prefill that it saves, in seconds a byte, times how often it is
likely to be used; a block is worth something only while a checkpoint at or below it needs it, and
only leaves go. Pure: it plans over an index under its lock and changes nothing. Called by `cache`.
"""

import heapq
import itertools
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from ds4_runtime.kv_keys import BLOCK_TOKENS

from ds4_kvcache.disk import Kind
from ds4_kvcache.index import Index, Node
from ds4_kvcache.record import LONG_HALF_LIFE_S, SHORT_HALF_LIFE_S, decay

# What was stored, found or restored within this time stays: a request may be at work on it, and
# its next records need it as their parent.
FRESH_S = 60.0

# Numbers of ds4.v1.CheckpointKind. What conversations have in common is used by the next one too,
# the end of a turn by the turn after it, a step of the lattice only where a prompt diverges.
ANCHOR, PROMPT_END, OUTPUT_END, LATTICE = 1, 2, 3, 4
_WEIGHT = {ANCHOR: 4.0, PROMPT_END: 2.0, OUTPUT_END: 2.0}

# A lattice step is kept for an hour; then every 4th, after a day every 16th of the daemon's 4,096.
_THIN = ((24 * 3600.0, 65_536), (3600.0, 16_384))
_TURN_ENDS_KEPT = 2


class Victim(NamedTuple):
    """A record that goes. A block's checkpoint goes before it."""

    tree: Index
    node: Node
    kind: Kind
    bytes: int  # on disk


@dataclass(frozen=True, slots=True)
class Scene:
    """What a plan is made for: one index, the time, what is held, and what prefill costs."""

    index: Index
    now_s: float  # Unix time
    monotonic_s: float
    held: Collection[Node] = ()  # leased
    prefill_tok_s: float = 0.0  # 0 while unknown
    fresh_s: float = FRESH_S

    @property
    def tok_s(self) -> float:
        # Only compares stores of different models; 350 is V4 Flash on a laptop.
        return self.prefill_tok_s or 350.0


@dataclass(slots=True)
class _Plan:
    """A scene in which some victims are gone already."""

    scene: Scene
    no_checkpoint: set[Node] = field(default_factory=set)
    gone: set[Node] = field(default_factory=set)
    children_gone: dict[Node, int] = field(default_factory=dict)
    kept_checkpoints: set[Node] = field(default_factory=set)
    kept_blocks: set[Node] = field(default_factory=set)

    def __post_init__(self) -> None:
        # What is held must still be resumable: its nearest checkpoint stays with it.
        nodes = self.scene.index.nodes.values()
        for node in {*self.scene.held, *(node for node in nodes if node.pins)}:
            self.kept_blocks.add(node)
            if (resume := node.checkpoint_at_or_above()) is not None:
                self.kept_checkpoints.add(resume)

    def is_leaf(self, node: Node) -> bool:
        return len(node.children) == self.children_gone.get(node, 0)

    def fresh(self, node: Node) -> bool:
        return self.scene.monotonic_s - node.touched_s < self.scene.fresh_s

    def has_checkpoint(self, node: Node) -> bool:
        return node.checkpoint is not None and node not in self.no_checkpoint

    def protection(self, node: Node, kind: Kind) -> str:
        """Why a record cannot go now; empty when it can."""
        if node.pins:
            return "pinned"
        if node in (self.kept_checkpoints if kind is Kind.CHECKPOINT else self.kept_blocks):
            return "leased" if node in self.scene.held else "pinned"
        if kind is Kind.BLOCK and not self.is_leaf(node):
            return "inner"
        return "fresh" if self.fresh(node) else ""

    def took(self, node: Node, kind: Kind) -> bool:
        return node in (self.no_checkpoint if kind is Kind.CHECKPOINT else self.gone)

    def take(self, victim: Victim) -> None:
        if victim.kind is Kind.CHECKPOINT:
            self.no_checkpoint.add(victim.node)
            return
        self.gone.add(victim.node)
        parent = victim.node.parent
        if isinstance(parent, Node):
            self.children_gone[parent] = self.children_gone.get(parent, 0) + 1

    def value(self, node: Node, kind: Kind) -> float:
        """Expected seconds of prefill saved a byte."""
        if kind is Kind.BLOCK or node.checkpoint is None or node.quarantined:
            return 0.0  # nothing can resume in what no checkpoint ends
        size = self.scene.index.checkpoint_bytes(node)
        use, record, now_s = node.use, node.checkpoint, self.scene.now_s
        if self.is_leaf(node):
            # The blocks that lead here and nowhere else go with it; rows are wanted again for days.
            size += self._tail_bytes(node)
            uses = use.long_at(now_s) + decay(now_s - record.created_s, LONG_HALF_LIFE_S)
        else:
            uses = use.short_at(now_s) + decay(now_s - record.created_s, SHORT_HALF_LIFE_S)
        saved_s = self._tokens_to_next_above(node) / self.scene.tok_s
        return _WEIGHT.get(record.kind, 1.0) * uses * saved_s / max(size, 1)

    def _tail_bytes(self, node: Node) -> int:
        size = 0
        while True:
            size += self.scene.index.block_bytes(node)
            parent = node.parent
            if not isinstance(parent, Node) or self.has_checkpoint(parent):
                return size
            if len(parent.children) - self.children_gone.get(parent, 0) > 1:
                return size
            node = parent

    def _tokens_to_next_above(self, node: Node) -> int:
        above = node.parent
        while isinstance(above, Node) and not self.has_checkpoint(above):
            above = above.parent
        return (node.depth - (above.depth if isinstance(above, Node) else 0)) * BLOCK_TOKENS


class _Entry(NamedTuple):
    value: float
    last_s: float  # between equals, what was used least lately
    order: int
    plan: _Plan
    node: Node
    kind: Kind


def plan(
    scenes: Iterable[Scene],
    need_bytes: int | None,
    wanted: Callable[[Node], bool] = lambda _node: True,
) -> list[Victim]:
    """Victims in their order until they give `need_bytes` (None: all that may go).

    `wanted` restricts them. May give less than is needed, when the rest is protected.
    """
    counter = itertools.count()

    def entry(plan: _Plan, node: Node) -> list[_Entry]:
        kind = Kind.CHECKPOINT if plan.has_checkpoint(node) else Kind.BLOCK
        if node in plan.gone or not wanted(node) or plan.protection(node, kind):
            return []
        last_s = max(node.use.last_s, node.block.created_s)
        return [_Entry(plan.value(node, kind), last_s, next(counter), plan, node, kind)]

    heap: list[_Entry] = []
    for scene in scenes:
        fresh_plan = _Plan(scene)
        for node in scene.index.nodes.values():
            if node.checkpoint is not None or not node.children:
                heap += entry(fresh_plan, node)
    heapq.heapify(heap)
    victims: list[Victim] = []
    freed = 0
    while heap and (need_bytes is None or freed < need_bytes):
        least = heapq.heappop(heap)
        if least.plan.took(least.node, least.kind):
            continue  # it became a leaf, was entered again, and went then
        value = least.plan.value(least.node, least.kind)
        if value > least.value:  # a checkpoint above it went, so it saves more now
            heapq.heappush(heap, least._replace(value=value))
            continue
        index = least.plan.scene.index
        size = (
            index.checkpoint_bytes(least.node)
            if least.kind is Kind.CHECKPOINT
            else index.block_bytes(least.node)
        )
        victims.append(Victim(index, least.node, least.kind, size))
        freed += size
        least.plan.take(victims[-1])
        # What it leaves: a block without its checkpoint, or a parent that is a leaf now.
        left = least.node if least.kind is Kind.CHECKPOINT else least.node.parent
        if isinstance(left, Node) and least.plan.is_leaf(left):
            for one in entry(least.plan, left):
                heapq.heappush(heap, one)
    return victims


def thin(scene: Scene) -> list[Victim]:
    """Checkpoints that are closer together than their age justifies; none that a tail needs.

    On every chain the newest two ends of turns stay, and where prompts part.
    """
    below: dict[
        Node, tuple[bool, int]
    ] = {}  # a checkpoint further down; fewest ends of turns there
    victims = []
    fresh_plan = _Plan(scene)
    for node in sorted(scene.index.nodes.values(), key=lambda one: -one.depth):
        covered, ends = False, 0
        if node.children:
            told = [below.pop(child) for child in node.children]
            covered = any(one for one, _ in told)
            ends = min(count for _, count in told)
        record = node.checkpoint
        if record is not None:
            is_end = record.kind in (PROMPT_END, OUTPUT_END)
            age_s = scene.now_s - max(record.created_s, node.use.last_s)
            excess = ends >= _TURN_ENDS_KEPT if is_end else _off_lattice(node, age_s)
            kept = record.kind == ANCHOR or not covered or len(node.children) > 1
            if excess and not kept and not fresh_plan.protection(node, Kind.CHECKPOINT):
                size = scene.index.checkpoint_bytes(node)
                victims.append(Victim(scene.index, node, Kind.CHECKPOINT, size))
            covered, ends = True, ends + is_end
        below[node] = (covered, ends)
    return victims


def _off_lattice(node: Node, age_s: float) -> bool:
    return any(age_s > limit_s and node.tokens_up_to % step for limit_s, step in _THIN)


def judge(scene: Scene) -> Callable[[Node], tuple[float, str]]:
    """A function that gives the value eviction compares, and why a block cannot go now."""
    fresh_plan = _Plan(scene)
    return lambda node: (
        fresh_plan.value(node, Kind.CHECKPOINT),
        fresh_plan.protection(node, Kind.BLOCK),
    )
