"""What is written to disk, byte by byte, against vectors that were written by hand."""

import random
import struct
import zlib
from collections.abc import Callable

import pytest
from ds4_kvcache import codec
from ds4_kvcache.counters import Counters
from ds4_kvcache.disk import PART_BYTES, Kind, part_key
from ds4_kvcache.errors import DamagedError
from ds4_kvcache.record import (
    NodeValue,
    Record,
    Use,
    pack_node,
    pack_use,
    unpack_node,
    unpack_use,
)

NOISE = random.Random(1).randbytes(5000)
KEY, PARENT = bytes(range(32)), bytes(range(100, 132))
BLOCK = Record(3, 0, 449_132, 374_000, 0xDEADBEEF, 1_800_000_000.5)
CHECKPOINT = Record(3, 2, 3_640_000, 3_000_000, 0x01020304, 1_800_000_001.0)


def test_node_is_laid_out_as_documented() -> None:
    """A node's value has the fields of docs/kv-format.md at their offsets, and its own CRC-32."""
    value = pack_node(KEY, NodeValue(PARENT, 7, BLOCK, CHECKPOINT, True))
    by_hand = PARENT + (7).to_bytes(4, "little") + b"\1"
    for record in (BLOCK, CHECKPOINT):
        by_hand += bytes([record.codec, record.kind])
        for number in (record.raw_bytes, record.stored_bytes, record.crc32):
            by_hand += number.to_bytes(4, "little")
        by_hand += struct.pack("<d", record.created_s)
    assert value[:-4] == by_hand
    assert value[-4:] == zlib.crc32(KEY + by_hand).to_bytes(4, "little")


@pytest.mark.parametrize("checkpoint", [None, CHECKPOINT])
def test_node_survives_packing(checkpoint: Record | None) -> None:
    """A node unpacks to what was packed, with a checkpoint and without."""
    node = NodeValue(PARENT, 7, BLOCK, checkpoint, False)
    assert unpack_node(KEY, pack_node(KEY, node)) == node


def test_every_flipped_bit_of_a_node_is_found() -> None:
    """No bit of a node's value can be flipped, and no other key can claim it, unnoticed."""
    value = pack_node(KEY, NodeValue(PARENT, 7, BLOCK, CHECKPOINT, False))
    for bit in range(8 * len(value)):
        broken = bytearray(value)
        broken[bit // 8] ^= 1 << bit % 8
        with pytest.raises(DamagedError):
            unpack_node(KEY, bytes(broken))
    with pytest.raises(DamagedError):
        unpack_node(PARENT, value)
    with pytest.raises(DamagedError):
        unpack_node(KEY, value[:-1])


def test_part_keys_lie_in_order() -> None:
    """Parts of a record follow one another, blocks before checkpoints of the same key."""
    keys = [part_key(KEY, kind, i) for kind in Kind for i in (0, 1, 255, 256, 65_535)]
    assert keys == sorted(keys)
    assert keys[3] == KEY + b"B\x01\x00"
    assert (PART_BYTES + 16) % 4096 == 0 and (PART_BYTES + 16) % 16_384 == 0


def test_use_survives_packing_and_damage() -> None:
    """Counts of uses unpack to what was packed; what cannot be read counts as never used."""
    use = Use(1_800_000_000.0, 1.5, 2.5, 3, 4.5)
    assert unpack_use(pack_use(use)) == use
    assert unpack_use(b"short") == Use()
    assert unpack_use(struct.pack("<dffId", float("nan"), 1, 1, 1, 1)) == Use()


def test_counters_survive_packing_and_damage() -> None:
    """Counters unpack to what was packed, and begin anew where they cannot be read."""
    counters = Counters(hits=3, misses={1: 2, 5: 7}, tokens_saved=10, seconds_saved=1.5)
    assert Counters.unpack(counters.pack()) == counters
    for damaged in (
        b"",
        b"{",
        b"[]",
        b'{"misses": 3}',
        b'{"misses": {}, "hits": "x"}',
        b"[" * 30_000,
    ):
        assert Counters.unpack(damaged) == Counters()


def test_frames_restore_the_very_bytes() -> None:
    """A frame gives back what was put in, whatever that is, and says its length."""
    for data in (b"x", bytes(100_000), bytes(range(256)) * 1000):
        frame = codec.compress(data)
        assert codec.decompress(frame, len(data)) == data
        assert laid(frame, len(data)) == data
        assert frame[:4] == bytes.fromhex("28b52ffd")  # zstd's magic number, RFC 8878
        assert frame[4] & 0b100, "the frame has a checksum of its content"


def laid(frame: bytes, raw_bytes: int) -> bytes:
    """What is laid into a place of so many bytes."""
    place = bytearray(raw_bytes)
    codec.decompress_into(frame, memoryview(place))
    return bytes(place)


@pytest.mark.parametrize("decompress", [codec.decompress, laid])
@pytest.mark.parametrize("data", [bytes(range(256)) * 20, bytes(5000), NOISE])
def test_damaged_frames_are_errors(data: bytes, decompress: Callable[[bytes, int], bytes]) -> None:
    """A frame with any byte changed, cut short, or of another length is an error, never data."""
    frame = codec.compress(data)
    for place in range(len(frame)):
        broken = bytearray(frame)
        broken[place] ^= 0x55
        try:
            assert decompress(bytes(broken), len(data)) == data  # a bit that means nothing
        except DamagedError:
            continue
    for wrong in (*(frame[:-n] for n in range(1, 9)), frame + b"\0", frame + frame, b"", frame[4:]):
        with pytest.raises(DamagedError):
            decompress(wrong, len(data))
    for other in (1, -1):
        with pytest.raises(DamagedError):
            decompress(frame, len(data) + other)
