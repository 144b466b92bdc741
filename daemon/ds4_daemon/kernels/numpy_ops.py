"""The network's operations in NumPy: what a CPU runs, in float32.

MLX's CPU build multiplies matrices some fifty times slower than the BLAS inside NumPy and
cannot be given kernels, so on a CPU the network runs over NumPy arrays from end to end.  The
functions are shaped for decode, where the cost is the number of calls: few, in place, no
temporaries that a call could avoid.  The state's buffers are NumPy arrays too.
"""

from collections.abc import Sequence
from functools import cache
from types import ModuleType
from typing import Any, cast

import numpy as np

from ds4_daemon.kernels.ops import Array, RowBuffer

_F32 = np.float32
_FP8_MAX = _F32(448)
_FP4_MAX = _F32(6)

# exp of it is finite in float32; a sigmoid is 0 beyond it, give or take 1e-38.
_LARGEST_EXPONENT = _F32(88.7)

# OpenBLAS multiplies up to 10^6 multiply-adds where the operands lie and packs them for larger
# products, which costs one query of decode five times the product itself. So its keys are taken in
# pieces, while a piece has rows enough to be worth a call.
_UNPACKED_MACS = 999_999
_UNPACKED_ROWS = 64

# Sinkhorn of one token: 120 NumPy calls take 80 µs for any few, plain floats 20 µs a token.
_TOKENS_FOR_ARRAYS = 6


class NumpyRows:
    """A `RowBuffer` that appends in place: capacity doubles, dropped rows are reclaimed.

    A row that is written stays where it is and as it is, so a view is a copy for free: what is
    saved of a sequence is read while the sequence runs on, and idle buffers may share rows.
    """

    def __init__(self, width: int) -> None:
        self._data = np.empty((16, width), _F32)
        self._start = self._end = 0
        self._shared: Array | None = None  # rows before those in `_data`, in another's memory

    def __len__(self) -> int:
        count = self._end - self._start
        return count if self._shared is None else count + len(self._shared)

    @property
    def nbytes(self) -> int:
        return (
            self._data.nbytes if self._shared is None else self._data.nbytes + self._shared.nbytes
        )

    @property
    def held(self) -> dict[int, int]:
        pieces = (self._data, self._data if self._shared is None else self._shared)
        return {id(memory): memory.nbytes for memory in map(memory_of, pieces)}

    def view(self) -> Array:
        if self._shared is not None:
            self._make_room(len(self))
        return self._data[self._start : self._end]

    def append(self, rows: Array) -> Array:
        end = self._end + len(rows)
        if end > len(self._data) or self._shared is not None:
            self._make_room(len(self) + len(rows))
            end = self._end + len(rows)
        self._data[self._end : end] = rows
        self._end = end
        return self._data[self._start : end]

    def drop_first(self, count: int) -> None:
        if self._shared is not None:
            self._make_room(len(self))
        self._start += count
        # What a chunk of a prompt went through is not kept for as long as the session lives.
        if 8 * max(len(self), 16) < len(self._data):
            self._make_room(len(self))

    def part(self, start: int, stop: int) -> Array:
        if self._shared is None:
            return self.view()[start:stop]
        first, rest = len(self._shared), self._data[: self._end]
        if stop <= first:
            return self._shared[start:stop]
        if start >= first:
            return rest[start - first : stop - first]
        return np.concatenate([self._shared[start:], rest[: stop - first]])

    def adopt(self, data: Array, count: int) -> None:
        self._data, self._shared = data, None
        self._start, self._end = 0, count

    def take(self, other: RowBuffer, count: int) -> None:
        shared = other._shared if isinstance(other, NumpyRows) else None
        if shared is None or count < len(shared):
            self.adopt(other.part(0, count), count)
        else:  # what comes after shared rows never grows in place either
            rest = other.part(len(shared), count)
            self.adopt(rest, len(rest))
            self._shared = shared

    def share(self, other: RowBuffer, count: int) -> None:
        if self._shared is not None or not isinstance(other, NumpyRows):
            return
        theirs = (other.view() if other._shared is None else other._shared)[:count]
        mine = self.view()[: len(theirs)]
        # As integers: -0 is not 0 then, and whatever is no number equals itself.
        equal = np.array_equal(mine.view(np.uint32), theirs[: len(mine)].view(np.uint32))
        if len(mine) < len(theirs) or not len(mine) or not equal:
            return
        if mine.ctypes.data != theirs.ctypes.data:  # else it is so already
            rest = np.array(self.view()[len(mine) :])
            self._data, self._shared = rest, theirs
            self._start, self._end = 0, len(rest)

    def _make_room(self, needed: int) -> None:
        # At least twice what is held, so that moving rows is rare whether they grow or slide.
        used = self.part(0, len(self))
        data = np.empty((2 * needed, self._data.shape[1]), _F32)
        data[: len(used)] = used
        self._data, self._shared = data, None
        self._start, self._end = 0, len(used)


def memory_of(array: Array) -> Array:
    """The array whose memory this one is in."""
    return array if not isinstance(array.base, np.ndarray) else array.base


class NumpyOps:
    """`Ops` over NumPy; see there for what each does."""

    xp: ModuleType = np
    slice_macs = 2e8  # 4 ms of one core that does 50 a nanosecond, about a token of one sequence

    def asarray(self, values: Array) -> Array:
        return values

    def numpy(self, array: Array) -> Array:
        return array

    def run(self, arrays: Sequence[Array]) -> None:
        return None

    def f32(self, x: Array) -> Array:
        return x

    def activation(self, x: Array) -> Array:
        return x

    def rows(self, width: int, *, activations: bool = False) -> RowBuffer:
        return NumpyRows(width)

    def rms_norm(self, x: Array, weight: Array | None, eps: float) -> Array:
        mean_square = np.vecdot(x, x)[..., None]
        mean_square *= _F32(1 / x.shape[-1])
        mean_square += _F32(eps)
        np.sqrt(mean_square, out=mean_square)
        y = x / mean_square
        if weight is not None:
            y *= weight
        return y

    def sigmoid(self, x: Array) -> Array:
        y = np.negative(x)
        np.minimum(y, _LARGEST_EXPONENT, out=y)
        np.exp(y, out=y)
        y += _F32(1)
        return np.reciprocal(y, out=y)

    def softmax(self, x: Array, axis: int) -> Array:
        y = x - np.maximum.reduce(x, axis=axis, keepdims=True)
        np.exp(y, out=y)
        y /= np.add.reduce(y, axis=axis, keepdims=True)
        return y

    def swiglu(self, gate_up: Array, limit: float) -> Array:
        width = gate_up.shape[-1] // 2
        gate, up = gate_up[..., :width], gate_up[..., width:]
        if limit != float("inf"):
            gate = np.minimum(gate, _F32(limit))
            up = np.minimum(up, _F32(limit))
            np.maximum(up, _F32(-limit), out=up)
        y = self.sigmoid(gate)
        y *= gate
        y *= up
        return y

    def router_scores(self, logits: Array) -> Array:
        return np.sqrt(np.logaddexp(logits, _F32(0)))

    def rope_table(self, positions: Array, inv_freq: Array) -> Array:
        angles = np.asarray(positions, _F32)[..., None] * inv_freq
        table = np.empty(angles.shape, np.complex64)
        table.real = np.cos(angles)
        table.imag = np.sin(angles)
        return table

    def rope(self, x: Array, cos_sin: Array, *, inverse: bool = False) -> Array:
        # An interleaved pair is a complex number and its rotation a product.
        pairs = x[..., -2 * cos_sin.shape[-1] :].view(np.complex64)
        pairs *= cos_sin.conj() if inverse else cos_sin
        return x

    def sinkhorn(self, logits: Array, iterations: int, eps: float) -> Array:
        # Decode is in double precision, where plain floats and NumPy agree to the bit, so that
        # the faster one may be taken.  What decides the precision is the tokens of one sequence:
        # its numbers do not depend on company.
        decode = logits.shape[1] == 1
        dtype = np.float64 if decode else _F32
        c = self.softmax(logits.astype(dtype, copy=False), -1)
        c += dtype(eps)
        if decode and c.shape[-1] == 4 and c.shape[0] < _TOKENS_FOR_ARRAYS:
            flat = [_sinkhorn_4x4(m, iterations, eps) for m in c.reshape(-1, 16).tolist()]
            return np.array(flat, _F32).reshape(logits.shape)
        return _sinkhorn(c, iterations, dtype(eps)).astype(_F32, copy=False)

    def fp8_round(self, x: Array) -> Array:
        z, scale, inverse = _blocks(x, 64, floor=1e-4, largest=_FP8_MAX)
        v = z * inverse
        np.minimum(v, _FP8_MAX, out=v)
        np.maximum(v, -_FP8_MAX, out=v)
        # Normal codes keep three mantissa bits: round the float's own bits to nearest even.
        bits = v.view(np.int32)
        normal = ((bits + 0x7FFFF + ((bits >> 20) & 1)) & ~0xFFFFF).view(_F32)
        # Subnormal codes are multiples of 2^-9: adding 1.5·2^14 rounds to that unit.
        subnormal = (v + _F32(24576)) - _F32(24576)
        y = np.where(np.abs(v) < _F32(2.0**-6), np.copysign(subnormal, v), normal)
        y *= scale
        return y.reshape(x.shape)

    def fp4_round(self, x: Array) -> Array:
        z, scale, inverse = _blocks(x, 32, floor=6 * 2.0**-126, largest=_FP4_MAX)
        v = z * inverse
        v += _F32(0)  # e2m1 keeps the sign of what rounds to zero, not of zero itself
        np.minimum(v, _FP4_MAX, out=v)
        np.maximum(v, -_FP4_MAX, out=v)
        # One mantissa bit: the unit is 1/2 below 2, then 1, then 2; rint breaks ties to even.
        size = np.abs(v)
        unit = np.where(size < _F32(2), _F32(0.5), np.where(size < _F32(4), _F32(1), _F32(2)))
        y = np.rint(v / unit)
        y *= unit
        y *= scale
        return y.reshape(x.shape)

    def hadamard(self, x: Array) -> Array:
        return np.matmul(x, _hadamard_matrix(x.shape[-1]))

    def attend(
        self,
        q: Array,
        parts: Sequence[tuple[Array, Array | None]],
        sink: Array,
        scale: float,
    ) -> Array:
        n, heads, width = q.shape
        most = _UNPACKED_MACS // (n * heads * width)
        if most >= _UNPACKED_ROWS:
            parts = _pieces(parts, most)
        flat = q.reshape(n * heads, width) * _F32(scale)
        scores = np.empty((n, heads, sum(len(rows) for rows, _ in parts) + 1), _F32)
        flat_scores = scores.reshape(n * heads, -1)
        spans, at = [], 0
        for rows, mask in parts:
            span = slice(at, at + len(rows))
            np.matmul(flat, rows.T, out=flat_scores[:, span])
            if mask is not None:
                np.copyto(scores[:, :, span], _F32(-np.inf), where=~mask[:, None, :])
            spans.append(span)
            at = span.stop
        scores[:, :, at] = sink
        scores -= np.maximum.reduce(scores, axis=-1, keepdims=True)
        np.exp(scores, out=scores)
        scores /= np.add.reduce(scores, axis=-1, keepdims=True)
        out = np.matmul(flat_scores[:, spans[0]], parts[0][0])
        for span, (rows, _) in zip(spans[1:], parts[1:], strict=True):
            out += np.matmul(flat_scores[:, span], rows)
        return out.reshape(n, heads, width)

    def top_k(self, scores: Array, k: int) -> Array:
        if k >= scores.shape[-1]:
            return np.broadcast_to(np.arange(scores.shape[-1]), scores.shape)
        return np.argpartition(scores, -k, axis=-1)[..., -k:]

    def top_k_mask(self, scores: Array, k: int) -> Array:
        mask = np.zeros(scores.shape, bool)
        np.put_along_axis(mask, self.top_k(scores, k), True, axis=-1)
        return mask


def _sinkhorn(c: Array, iterations: int, eps: np.floating[Any]) -> Array:
    """Columns and rows of positive `[..., m, m]` normalised in turn.

    Tokens last: sums over four neighbours in memory cost NumPy five times as much.
    """
    m = c.shape[-1]
    a = np.ascontiguousarray(c.reshape(-1, m, m).transpose(1, 2, 0))  # (row, column, token)
    total = np.empty((m, a.shape[-1]), a.dtype)
    of_column, of_row = total[None], total[:, None]
    for i in range(iterations):
        if i:
            np.add.reduce(a, axis=1, out=total)
            np.add(total, eps, out=total)
            np.divide(a, of_row, out=a)
        np.add.reduce(a, axis=0, out=total)
        np.add(total, eps, out=total)
        np.divide(a, of_column, out=a)
    return np.ascontiguousarray(a.transpose(2, 0, 1)).reshape(c.shape)


def _sinkhorn_4x4(m: list[float], iterations: int, eps: float) -> tuple[float, ...]:
    """`_sinkhorn` of one 4 × 4 matrix given as 16 numbers, to the bit: the same operations."""
    a0, a1, a2, a3, b0, b1, b2, b3, c0, c1, c2, c3, d0, d1, d2, d3 = m
    for i in range(iterations):
        if i:
            a, b = a0 + a1 + a2 + a3 + eps, b0 + b1 + b2 + b3 + eps
            c, d = c0 + c1 + c2 + c3 + eps, d0 + d1 + d2 + d3 + eps
            a0, a1, a2, a3 = a0 / a, a1 / a, a2 / a, a3 / a
            b0, b1, b2, b3 = b0 / b, b1 / b, b2 / b, b3 / b
            c0, c1, c2, c3 = c0 / c, c1 / c, c2 / c, c3 / c
            d0, d1, d2, d3 = d0 / d, d1 / d, d2 / d, d3 / d
        a, b = a0 + b0 + c0 + d0 + eps, a1 + b1 + c1 + d1 + eps
        c, d = a2 + b2 + c2 + d2 + eps, a3 + b3 + c3 + d3 + eps
        a0, b0, c0, d0 = a0 / a, b0 / a, c0 / a, d0 / a
        a1, b1, c1, d1 = a1 / b, b1 / b, c1 / b, d1 / b
        a2, b2, c2, d2 = a2 / c, b2 / c, c2 / c, d2 / c
        a3, b3, c3, d3 = a3 / d, b3 / d, c3 / d, d3 / d
    return a0, a1, a2, a3, b0, b1, b2, b3, c0, c1, c2, c3, d0, d1, d2, d3


def _pieces(
    parts: Sequence[tuple[Array, Array | None]], most: int
) -> list[tuple[Array, Array | None]]:
    """Rows and their mask, at most so many together."""
    return [
        (rows[at : at + most], None if mask is None else mask[:, at : at + most])
        for rows, mask in parts
        for at in range(0, len(rows), most)
    ]


def _blocks(x: Array, size: int, floor: float, largest: np.float32) -> tuple[Array, Array, Array]:
    """Blocks `[..., k, size]` of `x` with the power-of-two scale of each and its inverse.

    The scale is 2^ceil(log2(max(amax, floor) / largest)), read from the quotient's bits: any
    mantissa bit set means the next power.
    """
    z = x.reshape(*x.shape[:-1], -1, size)
    amax = np.maximum.reduce(np.abs(z), axis=-1, keepdims=True)
    np.maximum(amax, _F32(floor), out=amax)
    exponent = ((amax / largest).view(np.int32) + 0x7FFFFF) >> 23
    return z, (exponent << 23).view(_F32), ((254 - exponent) << 23).view(_F32)


@cache
def _hadamard_matrix(n: int) -> Array:
    h = np.ones((1, 1), _F32)
    while len(h) < n:
        h = cast(Any, np.block([[h, h], [h, -h]]))
    return h * _F32(n**-0.5)
