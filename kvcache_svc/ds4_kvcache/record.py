"""What is written about a block, byte by byte; docs/kv-format.md is the reference.

Owns the layout of the values of the tables `node` and `use`. A node's value ends with a CRC-32 over
its key and itself, so a flipped bit in a length or a codec is a damaged block and not a wrong one.
Knows neither LMDB nor the tree.
"""

import struct
import zlib
from dataclasses import dataclass, field

from ds4_kvcache.errors import DamagedError

# parent key, depth in blocks, flags; then of the block and of the checkpoint: codec (0: there is
# none), why it is there, raw bytes, stored bytes, CRC-32 of the raw bytes, when it was stored.
_RECORD = "BBIIId"
_NODE = struct.Struct("<32sIB" + _RECORD + _RECORD)
_CRC = struct.Struct("<I")
_USE = struct.Struct("<dffId")
_QUARANTINED = 1

# The short one fits a conversation that is going on, the long one the prompts of days: V4's makers
# saw windows used again within minutes and rows within three days.
SHORT_HALF_LIFE_S = 6 * 3600.0
LONG_HALF_LIFE_S = 72 * 3600.0


@dataclass(frozen=True, slots=True)
class Record:
    """A block's rows or a checkpoint: how it is written, not what is in it."""

    codec: int  # ds4.v1.Codec
    kind: int  # of a checkpoint: ds4.v1.CheckpointKind; of a block: 0
    raw_bytes: int
    stored_bytes: int
    crc32: int  # of the raw bytes, as the daemon computed it
    created_s: float  # Unix time


@dataclass(frozen=True, slots=True)
class NodeValue:
    """The value of one key of the table `node`."""

    parent: bytes
    depth: int  # blocks up to and with this one
    block: Record
    checkpoint: Record | None
    quarantined: bool


@dataclass(slots=True)
class Use:
    """How often restores ended at a block. Counts decay, so that what was hot once makes room."""

    last_s: float = 0.0  # Unix time; 0: never
    short: float = 0.0  # decayed count at last_s, half-life SHORT_HALF_LIFE_S
    long: float = 0.0
    hits: int = 0
    seconds_saved: float = field(default=0.0)

    def add(self, now_s: float) -> None:
        """Count one restore."""
        self.short = self.short_at(now_s) + 1
        self.long = self.long_at(now_s) + 1
        self.last_s = max(now_s, self.last_s)
        self.hits += 1

    def absorb(self, other: "Use") -> None:
        """Take over the counts of a block that is going; its parent served those restores too."""
        now_s = max(self.last_s, other.last_s)
        self.short = self.short_at(now_s) + other.short_at(now_s)
        self.long = self.long_at(now_s) + other.long_at(now_s)
        self.last_s = now_s
        self.hits += other.hits
        self.seconds_saved += other.seconds_saved

    def short_at(self, now_s: float) -> float:
        return self.short * decay(now_s - self.last_s, SHORT_HALF_LIFE_S)

    def long_at(self, now_s: float) -> float:
        return self.long * decay(now_s - self.last_s, LONG_HALF_LIFE_S)


def decay(age_s: float, half_life_s: float) -> float:
    """What is left of 1 after `age_s`; a clock that was set back ages nothing."""
    return float(2.0 ** -(max(age_s, 0.0) / half_life_s))


def pack_node(key: bytes, node: NodeValue) -> bytes:
    none = Record(0, 0, 0, 0, 0, 0.0)
    packed = _NODE.pack(
        node.parent,
        node.depth,
        _QUARANTINED if node.quarantined else 0,
        *_fields(node.block),
        *_fields(node.checkpoint or none),
    )
    return packed + _CRC.pack(zlib.crc32(packed, zlib.crc32(key)))


def unpack_node(key: bytes, value: bytes) -> NodeValue:
    """The node of `key`. Raises DamagedError when the value is not what was written under it."""
    if len(value) != _NODE.size + _CRC.size:
        raise DamagedError("NODE_DAMAGED", f"a node has {len(value)} bytes")
    packed, (crc32,) = value[: _NODE.size], _CRC.unpack(value[_NODE.size :])
    if zlib.crc32(packed, zlib.crc32(key)) != crc32:
        raise DamagedError("NODE_DAMAGED", "a node does not match its checksum")
    parent, depth, flags, *rest = _NODE.unpack(packed)
    block, checkpoint = Record(*rest[:6]), Record(*rest[6:])
    return NodeValue(
        parent, depth, block, checkpoint if checkpoint.codec else None, bool(flags & _QUARANTINED)
    )


def _fields(record: Record) -> tuple[int, int, int, int, int, float]:
    return (
        record.codec,
        record.kind,
        record.raw_bytes,
        record.stored_bytes,
        record.crc32,
        record.created_s,
    )


def pack_use(use: Use) -> bytes:
    return _USE.pack(use.last_s, use.short, use.long, use.hits, use.seconds_saved)


def unpack_use(value: bytes) -> Use:
    """Counts are worth no alarm: what cannot be read counts as never used."""
    if len(value) != _USE.size:
        return Use()
    use = Use(*_USE.unpack(value))
    sound = all(0 <= x < 1e12 for x in (use.last_s, use.short, use.long, use.seconds_saved))
    return use if sound else Use()
