"""FP8 and FP4 codes of values that lie on their grid, and the values of codes: exact or refused.

The network rounds what it caches: unrotated channels of key rows to E4M3 with a power-of-two
scale per 64, indexer keys to E2M1 with one per 32 (model-spec §2.3, §2.4). So a code and a scale
hold such a value without loss. Knows no record and no layer; called by `pack`.
"""

import math
import threading
from functools import cache
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Codes = NDArray[np.uint8]
_T = TypeVar("_T", bound=np.generic)

FP8_BLOCK, FP4_BLOCK = 64, 32
_FP8_LARGEST, _FP4_LARGEST = np.float32(448), np.float32(6)
# A float32 times these has the code's bits on top of its own: exponent fields of 4 and 2 bits end
# where float32's does, and the subnormals of both formats become subnormals of float32.
_FP8_SHIFT, _FP4_SHIFT = np.float32(2.0**-120), np.float32(2.0**-126)
_local = threading.local()
# Back again, in a scale's exponent field, where the sum is that of a finite number.
_FP8_UNSHIFT, _FP8_UNSHIFT_AT_MOST = 120, 254 - 120


def to_fp8(x: Floats) -> tuple[Codes, Codes]:
    """Rows `[n, c]`, c in blocks of 64 → codes `[n, c]` and scales `[n, c / 64]`.

    A scale is float32's exponent field of a power of two. Right only for values on the grid: who
    calls compares `from_fp8` of it.
    """
    v, exponents = _scaled(x, FP8_BLOCK, _FP8_LARGEST, _FP8_SHIFT)
    return _cut(v, 20, 7), exponents


def from_fp8(codes: Codes, scales: Codes, out: Floats) -> None:
    """The inverse of `to_fp8`, of rows `[..., n, c]` into the first channels of `out`, which may
    be strided."""
    # Widened with their sign, the bits are those of float32 but for copies of the sign.
    bits = scratch("bits", codes.shape, np.int32)
    bits[...] = codes.view(np.int8)
    bits <<= 20
    bits &= ~0x78000000
    values = bits.view(np.float32)
    powers = scales.astype(np.int32)
    if scales.min(initial=1) and scales.max(initial=0) <= _FP8_UNSHIFT_AT_MOST:
        powers += _FP8_UNSHIFT  # one multiplication does for both
    else:
        values *= np.float32(2.0**_FP8_UNSHIFT)
    factors = _spread(powers, FP8_BLOCK)
    np.multiply(values, factors.reshape(values.shape), out=out[..., : codes.shape[-1]])


def to_fp4(x: Floats) -> tuple[Codes, Codes]:
    """Rows `[n, c]` in blocks of 32 → codes `[n, c / 2]`, low half first; scales `[n, c / 32]`."""
    v, exponents = _scaled(x, FP4_BLOCK, _FP4_LARGEST, _FP4_SHIFT)
    pairs = _cut(v, 22, 3).reshape(len(x), x.shape[1] // 2, 2)
    return pairs[..., 0] | pairs[..., 1] << np.uint8(4), exponents


def from_fp4(codes: Codes, scales: Codes, out: Floats) -> None:
    """The inverse of `to_fp4`, of rows `[..., n, c]` into `out`, which may be strided."""
    # One look-up gives the two values of a byte. No code is past the table: "clip" spares a check.
    pairs = scratch("bits", codes.shape, np.uint64)
    values = _fp4_pairs().take(codes, mode="clip", out=pairs).view(np.float32)
    np.multiply(values, _spread(scales, FP4_BLOCK).reshape(values.shape), out=out)


def same(a: Floats, b: Floats) -> bool:
    """Equal bit for bit, so that -0 is not 0 and a NaN is itself."""
    return bool(np.array_equal(a.view(np.uint32), b.view(np.uint32)))


def _scaled(x: Floats, size: int, largest: np.float32, shift: np.float32) -> tuple[Floats, Codes]:
    """`x` in blocks of `size` over the smallest power of two that leaves none above `largest`,
    times `shift`; and the scales.

    Rounding may have lowered a block's largest value, so this scale may be half of the network's:
    the finer grid holds the coarser one's values.
    """
    sizes = np.abs(x, out=scratch("sizes", x.shape, np.float32))
    blocks = sizes.view(np.int32).reshape(len(x), x.shape[1] // size, size)
    amax = blocks.max(-1).view(np.float32)  # positive floats are in the order of their bits
    exponents = np.clip(((amax / largest).view(np.int32) + 0x7FFFFF) >> 23, 1, 253)
    with np.errstate(over="ignore", invalid="ignore"):  # not on the grid: found by comparing
        scaled = np.multiply(x, _spread(254 - exponents, size).reshape(x.shape), out=sizes)
        scaled *= shift
    return scaled, exponents.astype(np.uint8)


def _cut(v: Floats, lowest: int, size: int) -> Codes:
    """Of each value the `size` bits from bit `lowest` on, and above them its sign."""
    bits = v.view(np.uint32)
    shifted = scratch("shifted", bits.shape, np.uint32)
    codes = np.right_shift(bits, lowest, out=shifted).astype(np.uint8)
    signs = np.right_shift(bits, 31 - size, out=shifted).astype(np.uint8)
    codes &= (1 << size) - 1
    signs &= 1 << size
    codes |= signs
    return codes


def _spread(exponents: NDArray[np.integer[Any]], size: int) -> Floats:
    """Powers of two, each for the `size` values of a block, `[..., blocks, size]`; until the next
    call. NumPy's broadcasting over so few values costs three times what they do when they are
    written out."""
    factors = scratch("factors", (*exponents.shape, size), np.float32)
    factors[...] = (exponents.astype(np.int32) << 23).view(np.float32)[..., None]
    return factors


def scratch(name: str, shape: tuple[int, ...], dtype: type[_T]) -> NDArray[_T]:
    """Memory of this thread that the next call of this name gives again.

    Arrays of some hundred KB, made anew for every call, may go back to the system each time: taking
    them page by page made `from_fp8` three times slower.
    """
    size = math.prod(shape) * np.dtype(dtype).itemsize
    memory: Codes | None = getattr(_local, name, None)
    if memory is None or len(memory) < size:
        memory = np.empty(size, np.uint8)
        setattr(_local, name, memory)
    return memory[:size].view(dtype).reshape(shape)


@cache
def _fp4_pairs() -> NDArray[np.uint64]:
    code = np.arange(16, dtype=np.uint32)
    values = ((code & 7) << 22).view(np.float32) / _FP4_SHIFT
    values = np.where(code & 8, -values, values).astype(np.float32)
    pairs = np.empty((16, 16, 2), np.float32)
    pairs[..., 0], pairs[..., 1] = values[None, :], values[:, None]
    return pairs.reshape(-1, 2).view(np.uint64).ravel()
