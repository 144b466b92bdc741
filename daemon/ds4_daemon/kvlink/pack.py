"""Records to bytes and back, without loss: what is restored is, bit for bit, what was saved.

The codec is chosen by the values, record by record, and checked by unpacking before it is used:

    PACKED       FP8 codes and scales, rotated channels as bf16; FP4 codes and scales of keys
    PACKED_F32   the same with the rotated channels as float32 (what a CPU computes)
    BF16_PLANES  high bytes of bf16 values, then low bytes
    RAW          float32

Parts lie one after another: of all rows together, then of all keys, then the rest, which is always
float32. Little endian. docs/kv-format.md has the offsets. Called by `link` and by tests; knows no
layer beyond the counts of a `Shape`.
"""

import enum
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from ds4_daemon.errors import DaemonError
from ds4_daemon.kvlink.grid import (
    FP4_BLOCK,
    FP8_BLOCK,
    Floats,
    from_fp4,
    from_fp8,
    same,
    to_fp4,
    to_fp8,
)
from ds4_daemon.kvlink.layout import Layout, Shape

Bytes = NDArray[np.uint8]
_T = TypeVar("_T", bound=np.generic)


class Codec(enum.Enum):
    """How a record is written; values as the contract numbers them."""

    RAW = 1
    BF16_PLANES = 2
    PACKED = 3
    PACKED_F32 = 4


class RecordError(DaemonError):
    """Bytes that are no record of this shape."""


class Record(NamedTuple):
    """The values of a record, parts one after another."""

    rows: Floats  # [n, head_dim]
    keys: Floats  # [k, index_dim]
    rest: Floats  # [m]


class Pieces(NamedTuple):
    """A record as it lies in a session: views of a layer each, joined only when it is packed."""

    rows: tuple[Floats, ...]
    keys: tuple[Floats, ...]
    rest: tuple[Floats, ...]

    def joined(self, layout: Layout) -> Record:
        """Its values one after another."""
        return Record(
            _joined(self.rows, layout.head_dim),
            _joined(self.keys, layout.index_dim),
            _joined(tuple(a.ravel() for a in self.rest), 0),
        )


def pack(record: Record, layout: Layout) -> tuple[Codec, bytes]:
    """The smallest of the codecs that give this record back."""
    rest = record.rest.tobytes()
    for codec in (Codec.PACKED, Codec.PACKED_F32, Codec.BF16_PLANES):
        parts = _encode(codec, record, layout)
        if parts is not None:
            return codec, b"".join([*parts, rest])
    return Codec.RAW, b"".join([record.rows.tobytes(), record.keys.tobytes(), rest])


def empty(shape: Shape, layout: Layout) -> Record:
    """Arrays for `unpack` to fill, which it may do again and again."""
    return Record(
        np.empty((sum(shape.rows), layout.head_dim), np.float32),
        np.empty((sum(shape.keys), layout.index_dim), np.float32),
        np.empty(sum(shape.rest), np.float32),
    )


def unpack(codec: Codec, data: Bytes, out: Record, layout: Layout) -> None:
    """Fill `out` from the bytes of a record of its shape. Raises RecordError for another size."""
    if len(data) != packed_size(codec, out, layout):
        raise RecordError(
            "RECORD_SIZE",
            f"a {codec.name} record has {len(data)} bytes, not {packed_size(codec, out, layout)}",
            "it belongs to another layout",
        )
    take = _Reader(data)
    n, k = len(out.rows), len(out.keys)
    plain = layout.head_dim - layout.rotated
    match codec:
        case Codec.RAW:
            out.rows[:] = take.array(np.float32, out.rows.shape)
            out.keys[:] = take.array(np.float32, out.keys.shape)
        case Codec.BF16_PLANES:
            _join_planes(take, out.rows)
            _join_planes(take, out.keys)
        case Codec.PACKED | Codec.PACKED_F32:
            codes = take.array(np.uint8, (n, plain))
            from_fp8(codes, take.array(np.uint8, (n, plain // FP8_BLOCK)), out.rows)
            if codec is Codec.PACKED_F32:
                out.rows[:, plain:] = take.array(np.float32, (n, layout.rotated))
            else:
                _widen(take.array(np.uint16, (n, layout.rotated)), out.rows[:, plain:])
            key_codes = take.array(np.uint8, (k, layout.index_dim // 2))
            from_fp4(key_codes, take.array(np.uint8, (k, layout.index_dim // FP4_BLOCK)), out.keys)
    out.rest[:] = take.array(np.float32, out.rest.shape)


def packed_size(codec: Codec, record: Record, layout: Layout) -> int:
    """Bytes of a record of this shape in this codec."""
    n, k = len(record.rows), len(record.keys)
    plain, rest = layout.head_dim - layout.rotated, 4 * len(record.rest)
    match codec:
        case Codec.RAW:
            return 4 * (record.rows.size + record.keys.size) + rest
        case Codec.BF16_PLANES:
            return 2 * (record.rows.size + record.keys.size) + rest
    rotated = layout.rotated * (2 if codec is Codec.PACKED else 4)
    row = plain + plain // FP8_BLOCK + rotated
    key = layout.index_dim // 2 + layout.index_dim // FP4_BLOCK
    return n * row + k * key + rest


def _encode(codec: Codec, record: Record, layout: Layout) -> list[bytes] | None:
    """The parts of rows and keys, or None where this codec would lose something."""
    rows, keys = record.rows, record.keys
    if codec is Codec.BF16_PLANES:
        if not (_is_bf16(rows) and _is_bf16(keys)):
            return None
        return [plane for x in (rows, keys) for plane in _planes(x)]
    plain = layout.head_dim - layout.rotated
    if plain % FP8_BLOCK or layout.index_dim % FP4_BLOCK:
        return None
    if codec is Codec.PACKED and not _is_bf16(rows[:, plain:]):
        return None
    unrotated = np.ascontiguousarray(rows[:, :plain])
    back, keys_back = np.empty_like(unrotated), np.empty_like(keys)
    with np.errstate(over="ignore", invalid="ignore"):  # values off the grid: `same` finds them
        codes, scales = to_fp8(unrotated)
        key_codes, key_scales = to_fp4(keys)
        from_fp8(codes, scales, back)
        from_fp4(key_codes, key_scales, keys_back)
    if not (same(back, unrotated) and same(keys_back, keys)):
        return None
    rotated = np.ascontiguousarray(rows[:, plain:])
    wide = rotated if codec is Codec.PACKED_F32 else _narrow(rotated)
    return [part.tobytes() for part in (codes, scales, wide, key_codes, key_scales)]


def _joined(parts: tuple[Floats, ...], width: int) -> Floats:
    if parts:
        return np.concatenate(parts)
    return np.empty((0, width) if width else (0,), np.float32)


def _is_bf16(x: Floats) -> bool:
    return not bool((np.ascontiguousarray(x).view(np.uint32) & 0xFFFF).any())


def _narrow(x: Floats) -> NDArray[np.uint16]:
    return (x.view(np.uint32) >> 16).astype(np.uint16)


def _widen(x: NDArray[np.uint16], out: Floats) -> None:
    out[:] = (x.astype(np.uint32) << 16).view(np.float32)


def _planes(x: Floats) -> list[bytes]:
    halves = _narrow(x)
    return [(halves >> 8).astype(np.uint8).tobytes(), halves.astype(np.uint8).tobytes()]


def _join_planes(take: "_Reader", out: Floats) -> None:
    halves = take.array(np.uint8, out.shape).astype(np.uint16)
    halves <<= 8
    halves |= take.array(np.uint8, out.shape)
    _widen(halves, out)


class _Reader:
    """Arrays one after another from bytes that may be aligned to nothing."""

    def __init__(self, data: Bytes) -> None:
        self._data = data
        self._at = 0

    def array(self, dtype: type[_T], shape: tuple[int, ...]) -> NDArray[_T]:
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        part = self._data[self._at : self._at + size]
        self._at += size
        return part.view(dtype).reshape(shape)
