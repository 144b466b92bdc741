"""The number tables behind the packed formats: small floats, shared exponents, IQ2_XXS's grid.

Owns one NumPy table each, made once from its definition; the IQ2_XXS grid and signs come from the
`gguf` package, which publishes them. It knows no blocks and no tensors. Read by both dequantizers.
"""

from functools import cache

import numpy as np
import numpy.typing as npt
from gguf.quants import IQ2_XXS

Floats = npt.NDArray[np.float32]


@cache
def e2m1() -> Floats:
    """(16,): FP4's values by code; bit 3 is the sign, code 8 is minus zero."""
    magnitudes = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
    return _frozen(np.concatenate([magnitudes, -magnitudes]))


@cache
def e2m1_pairs() -> Floats:
    """(256, 2): the two FP4 values of a byte, low nibble first."""
    byte = np.arange(256)
    return _frozen(np.stack([e2m1()[byte & 15], e2m1()[byte >> 4]], axis=1))


@cache
def e4m3() -> Floats:
    """(256,): FP8's values by code: sign, 4 bits of exponent, 3 of mantissa; 0x7f, 0xff are NaN."""
    code = np.arange(256)
    exponent, mantissa = (code >> 3) & 15, code & 7
    magnitude = np.where(
        exponent == 0,
        np.ldexp(mantissa.astype(np.float32), -9),
        np.ldexp((8 + mantissa).astype(np.float32), exponent - 10),
    )
    magnitude[(code & 0x7F) == 0x7F] = np.nan
    return _frozen(np.where(code < 128, magnitude, -magnitude).astype(np.float32))


@cache
def e8m0() -> Floats:
    """(256,): powers of two 2^(code - 127); code 255 is NaN."""
    powers = np.ldexp(np.float32(1), np.arange(255) - 127, dtype=np.float32)
    return _frozen(np.append(powers, np.float32(np.nan)))


@cache
def ggml_e8m0_half() -> Floats:
    """(256,): 2^(code - 128), what ggml multiplies doubled FP4 codes by; it has no NaN."""
    return _frozen(np.ldexp(np.float32(1), np.arange(256) - 128, dtype=np.float32))


@cache
def ggml_e2m1_doubled() -> Floats:
    """(16,): twice FP4's values by code; kept as integers by ggml, so that code 8 is plus zero."""
    return _frozen(2 * e2m1() + np.float32(0))


@cache
def iq2_grid() -> Floats:
    """(256, 8): IQ2_XXS's magnitudes by grid index, each of 8, 25, 43."""
    IQ2_XXS.init_grid()
    grid = IQ2_XXS.grid
    assert grid is not None  # init_grid sets it
    return _frozen(grid.reshape(256, 8).astype(np.float32))


@cache
def iq2_signs() -> Floats:
    """(128, 8): IQ2_XXS's signs by 7-bit sign index; the eighth makes the minuses even."""
    masks = np.frombuffer(IQ2_XXS.ksigns, np.uint8)
    minus = (masks[:, None] >> np.arange(8, dtype=np.uint8)) & 1
    return _frozen(np.where(minus == 1, -1, 1).astype(np.float32))


@cache
def iq2_signed_grid() -> Floats:
    """(32768, 8): signs times magnitudes, by sign index * 256 + grid index; 1 MB fits a cache."""
    return _frozen((iq2_signs()[:, None] * iq2_grid()[None]).reshape(-1, 8))


def _frozen(table: Floats) -> Floats:
    table.flags.writeable = False  # callers share it
    return table
