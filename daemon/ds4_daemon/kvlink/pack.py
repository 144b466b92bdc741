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
import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from ds4_daemon.errors import DaemonError
from ds4_daemon.kvlink.grid import (
    FP4_BLOCK,
    FP8_BLOCK,
    Codes,
    Floats,
    from_fp4,
    from_fp8,
    same,
    scratch,
    to_fp4,
    to_fp8,
)
from ds4_daemon.kvlink.layout import Layout, Shape

Bytes = NDArray[np.uint8]
# Rows of a CSA layer in a block; with those of the HCA layer after it.
_ROWS_AT_ONCE = 32
_ALL_ROWS = 1 << 62
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

    @property
    def pieces(self) -> "Pieces":
        """The same as one layer has it."""
        return Pieces((self.rows,), (self.keys,), (self.rest,))


class Pieces(NamedTuple):
    """A record as it lies in a session: views of a layer each, joined only while it is packed."""

    rows: tuple[Floats, ...]
    keys: tuple[Floats, ...]
    rest: tuple[Floats, ...]

    def joined(self, layout: Layout) -> Record:
        """Its values one after another."""
        return Record(
            _concatenated(self.rows, layout.head_dim),
            _concatenated(self.keys, layout.index_dim),
            _concatenated(tuple(a.ravel() for a in self.rest), 0),
        )


def pack(
    pieces: Pieces,
    layout: Layout,
    at_once: int = _ALL_ROWS,
    did: Callable[[int], None] = lambda _: None,
) -> tuple[Codec, bytes]:
    """The smallest of the codecs that give this record back.

    `did` is told of each part of `at_once` rows or a layer more, and about how many bytes it makes.
    """
    coded = _coded(pieces, layout, at_once, did)
    return _written(coded, pieces.rest) if coded else _as_it_is(pieces.joined(layout))


def pack_alike(records: Sequence[Pieces], layout: Layout) -> list[tuple[Codec, bytes]]:
    """`pack` of several records of one shape, in a fraction of the calls of NumPy: beside a thread
    that decodes each of those waits for the interpreter, longer than it works."""
    if len(records) > 1:
        rows = tuple(part for record in records for part in record.rows)
        keys = tuple(part for record in records for part in record.keys)
        coded = _coded(Pieces(rows, keys, ()), layout, _ALL_ROWS, lambda _: None)
        if coded is not None:
            count = len(records)
            return [_written(coded.part(i, count), r.rest) for i, r in enumerate(records)]
    return [pack(record, layout) for record in records]


def places(shape: Shape, layout: Layout, count: int = 1) -> Pieces:
    """Arrays for `unpack` to fill with `count` records."""

    def room(sizes: tuple[int, ...], *width: int) -> tuple[Floats, ...]:
        return tuple(np.empty((count, size, *width), np.float32) for size in sizes)

    return Pieces(
        room(shape.rows, layout.head_dim), room(shape.keys, layout.index_dim), room(shape.rest)
    )


def unpack(codec: Codec, data: Bytes, out: Pieces, layout: Layout) -> None:
    """Fill `out`, parts of `[b, n, width]` or `[b, n]` that may be strided, from the bytes `[b, c]`
    of as many records. Raises RecordError for another size.

    Several at once take half the time: what NumPy does with the rows of one layer is soon done.
    """
    n, k, m = (sum(part.shape[1] for part in parts) for parts in out)
    size = packed_size(codec, Shape((n,), (k,), (m,)), layout)
    if data.shape[-1] != size:
        raise RecordError(
            "RECORD_SIZE",
            f"a {codec.name} record has {data.shape[-1]} bytes, not {size}",
            "it belongs to another layout",
        )
    take = _Reader(data)
    match codec:
        case Codec.RAW:
            _split(take.array(np.float32, n, layout.head_dim), out.rows)
            _split(take.array(np.float32, k, layout.index_dim), out.keys)
        case Codec.BF16_PLANES:
            _join_planes(take, n, layout.head_dim, out.rows)
            _join_planes(take, k, layout.index_dim, out.keys)
        case Codec.PACKED | Codec.PACKED_F32:
            _unpack_rows(codec, take, n, out.rows, layout)
            codes = take.array(np.uint8, k, layout.index_dim // 2)
            scales = take.array(np.uint8, k, layout.index_dim // FP4_BLOCK)
            for part, at, stop in _spans(out.keys):
                from_fp4(codes[:, at:stop], scales[:, at:stop], part)
    _split(take.array(np.float32, m), out.rest)


def _unpack_rows(
    codec: Codec, take: "_Reader", n: int, rows: tuple[Floats, ...], layout: Layout
) -> None:
    plain = layout.head_dim - layout.rotated
    codes = take.array(np.uint8, n, plain)
    scales = take.array(np.uint8, n, plain // FP8_BLOCK)
    wide = codec is Codec.PACKED_F32
    rotated = take.array(np.uint32 if wide else np.uint16, n, layout.rotated)
    # Layers together, until there are rows enough for what calls of NumPy cost. Written once, as a
    # whole, a row takes half the time of its parts one after another.
    first, group = 0, list[tuple[Floats, int, int]]()
    for part, at, stop in _spans(rows):
        group.append((part, at - first, stop - first))
        if stop - first < _ROWS_AT_ONCE and stop != n:
            continue
        whole = scratch("rows", (len(codes), stop - first, layout.head_dim), np.float32)
        from_fp8(codes[:, first:stop], scales[:, first:stop], whole)
        bits = whole[..., plain:].view(np.uint32)
        np.left_shift(rotated[:, first:stop], 0 if wide else 16, out=bits, dtype=np.uint32)
        for place, begin, end in group:
            place[...] = whole[:, begin:end]
        first, group = stop, []


def packed_size(codec: Codec, shape: Shape, layout: Layout) -> int:
    """Bytes of a record of this shape in this codec."""
    n, k, m = (sum(counts) for counts in shape)
    plain, rest = layout.head_dim - layout.rotated, 4 * m
    values = n * layout.head_dim + k * layout.index_dim
    match codec:
        case Codec.RAW:
            return 4 * values + rest
        case Codec.BF16_PLANES:
            return 2 * values + rest
    rotated = layout.rotated * (2 if codec is Codec.PACKED else 4)
    row = plain + plain // FP8_BLOCK + rotated
    key = layout.index_dim // 2 + layout.index_dim // FP4_BLOCK
    return n * row + k * key + rest


class _Coded(NamedTuple):
    """Rows and keys in codes, as arrays of some rows each."""

    codes: list[Codes]
    scales: list[Codes]
    rotated: list[Floats]
    key_codes: list[Codes]
    key_scales: list[Codes]

    def part(self, number: int, count: int) -> "_Coded":
        """Of `count` records of one shape the one of this number; all lie in one array."""

        def cut(arrays: list[NDArray[_T]]) -> list[NDArray[_T]]:
            size = len(arrays[0]) // count if arrays else 0
            return [array[number * size : (number + 1) * size] for array in arrays]

        return _Coded(*(cut(arrays) for arrays in self))


def _coded(
    pieces: Pieces, layout: Layout, at_once: int, did: Callable[[int], None]
) -> _Coded | None:
    """FP8 and FP4 codes, or None where they would lose something."""
    plain = layout.head_dim - layout.rotated
    if plain % FP8_BLOCK or layout.index_dim % FP4_BLOCK:
        return None
    made = _Coded([], [], [], [], [])
    # Each step over many rows: beside a thread that decodes, every call waits for its turn.
    with np.errstate(over="ignore", invalid="ignore"):  # values off the grid: `same` finds them
        for part in _groups(pieces.rows, at_once):
            rows = _joined(part, "rows", layout.head_dim)
            unrotated = scratch("unrotated", (len(rows), plain), np.float32)
            unrotated[...] = rows[:, :plain]
            found = to_fp8(unrotated)
            back = scratch("back", unrotated.shape, np.float32)
            from_fp8(*found, back)
            if not same(back, unrotated):
                return None
            made.codes.append(found[0])
            made.scales.append(found[1])
            made.rotated.append(np.ascontiguousarray(rows[:, plain:]))
            did(len(rows) * layout.head_dim)
        for part in _groups(pieces.keys, at_once * layout.head_dim // layout.index_dim):
            keys = _joined(part, "keys", layout.index_dim)
            found = to_fp4(keys)
            back = scratch("back", keys.shape, np.float32)
            from_fp4(*found, back)
            if not same(back, keys):
                return None
            made.key_codes.append(found[0])
            made.key_scales.append(found[1])
            did(len(keys) * layout.index_dim // 2)
    return made


def _written(coded: _Coded, rest: tuple[Floats, ...]) -> tuple[Codec, bytes]:
    narrow = all(_is_bf16(part) for part in coded.rotated)
    kept = [_narrow(part) for part in coded.rotated] if narrow else coded.rotated
    values = [np.ascontiguousarray(part) for part in rest]
    parts = (*coded.codes, *coded.scales, *kept, *coded.key_codes, *coded.key_scales, *values)
    return (Codec.PACKED if narrow else Codec.PACKED_F32), b"".join(part.data for part in parts)


def _groups(parts: tuple[Floats, ...], at_once: int) -> Iterator[tuple[Floats, ...]]:
    """Layers together, until there are so many rows."""
    first, rows = 0, 0
    for stop, part in enumerate(parts, 1):
        rows += len(part)
        if rows >= at_once or stop == len(parts):
            yield parts[first:stop]
            first, rows = stop, 0


def _joined(parts: tuple[Floats, ...], name: str, width: int) -> Floats:
    """Rows of layers one after another, until the next call of this thread.

    In memory that the thread keeps: arrays of a whole record are so large that malloc gives them
    back to the system, and taking them anew, page by page, took twice the time of packing.
    """
    out = scratch(name, (sum(map(len, parts)), width), np.float32)
    return np.concatenate(parts, out=out)


def _as_it_is(record: Record) -> tuple[Codec, bytes]:
    rows, keys, rest = record
    if _is_bf16(rows) and _is_bf16(keys):
        planes = [plane for x in (rows, keys) for plane in _planes(x)]
        return Codec.BF16_PLANES, b"".join([*planes, rest.tobytes()])
    return Codec.RAW, b"".join(part.tobytes() for part in record)


def _concatenated(parts: tuple[Floats, ...], width: int) -> Floats:
    if parts:
        return np.concatenate(parts)
    return np.empty((0, width) if width else (0,), np.float32)


def _is_bf16(x: Floats) -> bool:
    return not bool((np.ascontiguousarray(x).view(np.uint32) & 0xFFFF).any())


def _narrow(x: Floats) -> NDArray[np.uint16]:
    return (x.view(np.uint32) >> 16).astype(np.uint16)


def _widen(x: NDArray[np.uint16], out: Floats) -> None:
    np.left_shift(x, 16, out=out.view(np.uint32), dtype=np.uint32)


def _planes(x: Floats) -> list[bytes]:
    halves = _narrow(x)
    return [(halves >> 8).astype(np.uint8).tobytes(), halves.astype(np.uint8).tobytes()]


def _join_planes(take: "_Reader", n: int, width: int, out: tuple[Floats, ...]) -> None:
    halves = take.array(np.uint8, n, width).astype(np.uint16)
    halves <<= 8
    halves |= take.array(np.uint8, n, width)
    for part, at, stop in _spans(out):
        _widen(halves[:, at:stop], part)


def _split(values: Floats, out: tuple[Floats, ...]) -> None:
    for part, at, stop in _spans(out):
        part[...] = values[:, at:stop]


def _spans(parts: tuple[Floats, ...]) -> Iterator[tuple[Floats, int, int]]:
    """Parts of records, and where in a record each begins and ends."""
    at = 0
    for part in parts:
        yield part, at, at + part.shape[1]
        at += part.shape[1]


class _Reader:
    """Arrays one after another from the bytes of records, which may be aligned to nothing."""

    def __init__(self, data: Bytes) -> None:
        self._data = data
        self._at = 0

    def array(self, dtype: type[_T], *shape: int) -> NDArray[_T]:
        """Of every record the next so many values."""
        size = math.prod(shape) * np.dtype(dtype).itemsize
        part = self._data[:, self._at : self._at + size]
        self._at += size
        return part.view(dtype).reshape(len(part), *shape)
