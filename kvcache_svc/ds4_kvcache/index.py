"""The tree of blocks of one fingerprint in memory: what is stored, under whom, how used.

It is the truth while the service runs; the disk follows it (`store`). A node is a block, its
checkpoint hangs on it, a root is a salt. It holds no rows, except those not written yet. Not safe
for threads by itself: `store` guards it. `problems` names every invariant that is broken, for tests
and checks.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from ds4_runtime.kv_keys import BLOCK_TOKENS

from ds4_kvcache.record import NodeValue, Record, Use

# Of a node outside its records: 512 bytes of tokens, 100 of `node`, keys of three tables and what
# pages of them have free.
NODE_BYTES = 1024


@dataclass(slots=True, eq=False, repr=False)
class Root:
    """Where the chains of one salt begin."""

    key: bytes
    salt: str
    children: list["Node"] = field(default_factory=list)


@dataclass(slots=True, eq=False, repr=False)  # a node's fields lead to the whole tree
class Node:
    """A stored block. Frames and tokens are here until they are on disk."""

    key: bytes
    parent: "Node | Root"
    depth: int  # blocks up to and with this one
    block: Record
    checkpoint: Record | None = None
    quarantined: bool = False
    children: list["Node"] = field(default_factory=list)
    use: Use = field(default_factory=Use)
    touched_s: float = float("-inf")  # monotonic: put, found by a lookup or restored
    pins: set[str] = field(default_factory=set)
    tokens: bytes | None = None
    block_frame: bytes | None = None
    checkpoint_frame: bytes | None = None

    @property
    def tokens_up_to(self) -> int:
        """Tokens of the prefix that ends with this block."""
        return self.depth * BLOCK_TOKENS

    def way(self) -> list["Node"]:
        """The nodes from the first block to this one."""
        nodes: list[Node] = []
        node: Node | Root = self
        while isinstance(node, Node):
            nodes.append(node)
            node = node.parent
        nodes.reverse()
        return nodes

    @property
    def root(self) -> Root:
        node: Node | Root = self
        while isinstance(node, Node):
            node = node.parent
        return node

    def below(self) -> list["Node"]:
        """This node and all under it, parents first."""
        nodes = [self]
        for node in nodes:  # grows while it is read
            nodes.extend(node.children)
        return nodes

    def checkpoint_at_or_above(self) -> "Node | None":
        node: Node | Root = self
        while isinstance(node, Node):
            if node.checkpoint is not None:
                return node
            node = node.parent
        return None

    def value(self) -> NodeValue:
        """What the table `node` says of it."""
        return NodeValue(self.parent.key, self.depth, self.block, self.checkpoint, self.quarantined)


class Index:
    """All nodes of one fingerprint. `record_bytes` gives what stored bytes take on disk."""

    def __init__(self, record_bytes: Callable[[int], int]) -> None:
        self.nodes: dict[bytes, Node] = {}
        self.roots: dict[bytes, Root] = {}
        self._record_bytes = record_bytes
        self.blocks = Sum()
        self.checkpoints = Sum()

    @property
    def disk_bytes(self) -> int:
        """What everything takes on disk."""
        return self.blocks.disk_bytes + self.checkpoints.disk_bytes

    def block_bytes(self, node: Node) -> int:
        """What a block takes on disk without its checkpoint."""
        return self._record_bytes(node.block.stored_bytes) + NODE_BYTES

    def checkpoint_bytes(self, node: Node) -> int:
        """What a node's checkpoint takes on disk; 0 where there is none."""
        return self._record_bytes(node.checkpoint.stored_bytes) if node.checkpoint else 0

    def parent(self, key: bytes) -> Node | Root | None:
        return self.nodes.get(key) or self.roots.get(key)

    def add(self, node: Node) -> None:
        """Hang a new node under its parent."""
        self.nodes[node.key] = node
        node.parent.children.append(node)
        self.blocks.add(node.block, self.block_bytes(node))
        if node.checkpoint is not None:
            self.checkpoints.add(node.checkpoint, self.checkpoint_bytes(node))

    def set_checkpoint(self, node: Node, record: Record | None, frame: bytes | None) -> None:
        """Give a node a checkpoint, or take it away."""
        if node.checkpoint is not None:
            self.checkpoints.add(node.checkpoint, self.checkpoint_bytes(node), -1)
        node.checkpoint, node.checkpoint_frame = record, frame
        if record is not None:
            self.checkpoints.add(record, self.checkpoint_bytes(node))

    def remove(self, node: Node) -> None:
        """Take away a leaf; its parent keeps the count of its uses."""
        if node.children:
            raise ValueError("a node with children was to be removed")
        self.set_checkpoint(node, None, None)
        self.blocks.add(node.block, self.block_bytes(node), -1)
        node.parent.children.remove(node)
        if isinstance(node.parent, Node) and node.use.hits:
            node.parent.use.absorb(node.use)
        node.block_frame = node.tokens = None
        del self.nodes[node.key]

    def leaves(self) -> Iterator[Node]:
        return (node for node in self.nodes.values() if not node.children)

    def problems(self) -> list[str]:
        """Every broken invariant, as a sentence; empty when all hold."""
        found = []
        blocks, checkpoints = Sum(), Sum()
        for key, node in self.nodes.items():
            name = key.hex()[:16]
            parent = node.parent
            known = self.nodes.get(parent.key) or self.roots.get(parent.key)
            if key != node.key or known is not parent:
                found.append(f"block {name} hangs on nothing")
            if parent.children.count(node) != 1:
                found.append(f"block {name} is not among its parent's children")
            if node.depth != (parent.depth if isinstance(parent, Node) else 0) + 1:
                found.append(f"block {name} is at the wrong depth")
            if any(child.parent is not node for child in node.children):
                found.append(f"block {name} has children that are not its own")
            blocks.add(node.block, self.block_bytes(node))
            if node.checkpoint is not None:
                checkpoints.add(node.checkpoint, self.checkpoint_bytes(node))
        if blocks != self.blocks or checkpoints != self.checkpoints:
            found.append("the counters are not the sums of the records")
        return found


@dataclass(slots=True)
class Sum:
    """Counters of one class of records."""

    records: int = 0
    raw_bytes: int = 0
    stored_bytes: int = 0
    disk_bytes: int = 0

    def add(self, record: Record, disk_bytes: int, sign: int = 1) -> None:
        self.records += sign
        self.raw_bytes += sign * record.raw_bytes
        self.stored_bytes += sign * record.stored_bytes
        self.disk_bytes += sign * disk_bytes
