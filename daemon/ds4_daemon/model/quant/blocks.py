"""Packed bytes to float32 with NumPy: ggml's blocks, the release's FP8 and FP4, plain types.

Owns the arithmetic of every format, in the order that makes each value equal, bit for bit, to the
`gguf` package's (and FP8, FP4 to their definition). Knows arrays only; `dequantize` in the package
is the door for tensors. `blocks_mlx` is the same on a GPU.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from ds4_daemon.model.quant import codes
from ds4_daemon.model.tensor import Bytes, Format

Floats = npt.NDArray[np.float32]


def dequantize_blocks(fmt: Format, raw: Bytes) -> Floats:
    """uint8 (..., row bytes) of a ggml format -> float32 (..., columns)."""
    blocks = raw.reshape(-1, fmt.block_bytes)  # (blocks, block bytes)
    columns = raw.shape[-1] // fmt.block_bytes * fmt.block
    return _BLOCKS[fmt](blocks).reshape(*raw.shape[:-1], columns)


def dequantize_fp8(codes8: Bytes, scale: Bytes, first_row: int = 0) -> Floats:
    """uint8 (out, in) e4m3 and the (out/128, in/128) scales of the whole tensor -> float32.

    `first_row` says where in the tensor the given rows begin, which tile they belong to.
    """
    rows, columns = codes8.shape
    tile_of_row = (first_row + np.arange(rows)) // 128
    out = codes.e4m3()[codes8]
    out *= np.repeat(codes.e8m0()[scale], 128, axis=1)[tile_of_row, :columns]
    return out


def dequantize_fp4(packed: Bytes, scale: Bytes) -> Floats:
    """uint8 (out, in/2) pairs of e2m1 and (out, in/32) scales -> float32 (out, in)."""
    rows, groups = scale.shape
    out = codes.e2m1_pairs()[packed].reshape(rows, groups, 32)
    out *= codes.e8m0()[scale][:, :, None]
    return out.reshape(rows, groups * 32)


def _half(blocks: Bytes, at: int) -> Floats:
    """(blocks, 1): the f16 that lies at a byte offset of each block."""
    return np.ascontiguousarray(blocks[:, at : at + 2]).view(np.float16).astype(np.float32)


def _q8_0(blocks: Bytes) -> Floats:
    out = blocks[:, 2:].view(np.int8).astype(np.float32)
    out *= _half(blocks, 0)
    return out


def _q2_k(blocks: Bytes) -> Floats:
    # scales[16] (low nibble scale, high nibble minimum), qs[64], f16 d, f16 dmin
    scale = _half(blocks, 80) * (blocks[:, :16] & 15).astype(np.float32)
    minimum = _half(blocks, 82) * (blocks[:, :16] >> 4).astype(np.float32)
    shifts = np.arange(0, 8, 2, dtype=np.uint8)[:, None]
    quads = (blocks[:, 16:80].reshape(-1, 2, 1, 32) >> shifts) & 3  # (blocks, 2, 4, 32)
    out = quads.astype(np.float32).reshape(-1, 16, 16)
    out *= scale[:, :, None]
    out -= minimum[:, :, None]
    return out


def _q4_k(blocks: Bytes) -> Floats:
    # f16 d, f16 dmin, 12 bytes of eight 6-bit scales and minima, qs[128]
    low, high, mixed = blocks[:, 4:8], blocks[:, 8:12], blocks[:, 12:16]
    scales = np.concatenate([low & 63, (mixed & 15) | ((low >> 2) & 48)], axis=1)
    minima = np.concatenate([high & 63, (mixed >> 4) | ((high >> 2) & 48)], axis=1)
    scale = _half(blocks, 0) * scales.astype(np.float32)
    minimum = _half(blocks, 2) * minima.astype(np.float32)
    shifts = np.array([[0], [4]], np.uint8)
    nibbles = (blocks[:, 16:].reshape(-1, 4, 1, 32) >> shifts) & 15  # (blocks, 4, 2, 32)
    out = nibbles.astype(np.float32).reshape(-1, 8, 32)
    out *= scale[:, :, None]
    out -= minimum[:, :, None]
    return out


def _iq2_xxs(blocks: Bytes) -> Floats:
    # f16 d, then 8 groups of 32 values: 4 grid indices, u32 of four 7-bit signs and a 4-bit scale
    groups = np.ascontiguousarray(blocks[:, 2:]).reshape(-1, 8, 8)
    word = groups[:, :, 4:].copy().view(np.uint32)  # (blocks, 8, 1)
    half = _half(blocks, 0)[:, :, None]
    scale = half * (np.float32(0.5) + (word >> 28).astype(np.float32)) * np.float32(0.25)
    shifts = np.arange(0, 28, 7, dtype=np.uint32)
    index = ((word >> shifts) & 127) << 8 | groups[:, :, :4]  # (blocks, 8, 4)
    out: Floats = codes.iq2_signed_grid()[index].reshape(-1, 8, 32)
    out *= scale
    return out


def _mxfp4(blocks: Bytes) -> Floats:
    # e8m0, then 16 bytes whose low nibbles are values 0-15 and high nibbles values 16-31
    out = np.empty((len(blocks), 2, 16), np.float32)
    values = codes.ggml_e2m1_doubled()
    out[:, 0] = values[blocks[:, 1:] & 15]
    out[:, 1] = values[blocks[:, 1:] >> 4]
    out *= codes.ggml_e8m0_half()[blocks[:, :1]][:, :, None]
    return out


def _bf16(blocks: Bytes) -> Floats:
    wide = blocks.copy().view(np.uint16).astype(np.uint32)
    return (wide << 16).view(np.float32)


_BLOCKS: dict[Format, Callable[[Bytes], Floats]] = {
    Format.F32: lambda blocks: blocks.copy().view(np.float32),
    Format.F16: lambda blocks: blocks.copy().view(np.float16).astype(np.float32),
    Format.BF16: _bf16,
    Format.Q8_0: _q8_0,
    Format.Q2_K: _q2_k,
    Format.Q4_K: _q4_k,
    Format.IQ2_XXS: _iq2_xxs,
    Format.MXFP4: _mxfp4,
}
