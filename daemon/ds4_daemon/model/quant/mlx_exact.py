"""Repacks the formats that MLX can multiply with as they are, without changing a value.

Owns the fit: Q8_0 is affine 8 bit in groups of 32, FP4 and MXFP4 are mode "mxfp4", FP8 is mode
"mxfp8" once its tile scales are spread to groups of 32. The other formats have no equivalent and
stay raw blocks. Called by `load`; NumPy in, arrays for mx.quantized_matmul out.
"""

from typing import NamedTuple

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from ds4_daemon.model.tensor import Bytes, Format, Tensor

GROUP = 32  # columns that share a scale, in all three modes


class Packed(NamedTuple):
    """What mx.quantized_matmul(x, weight, scales, biases, transpose=True, **keywords) takes."""

    weight: mx.array  # uint32 (out, in * bits / 32)
    scales: mx.array  # (out, in / 32): float32 for affine, else uint8 e8m0
    biases: mx.array | None  # float32 like scales, affine only
    bits: int
    mode: str

    @property
    def nbytes(self) -> int:
        biases = 0 if self.biases is None else self.biases.nbytes
        return self.weight.nbytes + self.scales.nbytes + biases

    def dequantize(self) -> mx.array:
        """float32 (out, in), by MLX's own arithmetic."""
        return mx.dequantize(
            self.weight,
            self.scales,
            self.biases,
            group_size=GROUP,
            bits=self.bits,
            mode=self.mode,
            dtype=mx.float32,
        )


def has_exact_form(tensor: Tensor) -> bool:
    """Whether `pack` takes this tensor. FP8 rows must be whole groups of columns."""
    if tensor.format is Format.FP8:
        return tensor.shape[1] % GROUP == 0
    return tensor.format in (Format.Q8_0, Format.MXFP4, Format.FP4)


def pack(tensor: Tensor) -> Packed:
    """The tensor in MLX's own form; see `has_exact_form`."""
    match tensor.format:
        case Format.Q8_0:
            return _affine(tensor.data)
        case Format.MXFP4:
            return _mxfp4(tensor.data)
        case Format.FP4 if tensor.scale is not None:
            return Packed(_words(tensor.data), mx.array(tensor.scale), None, 4, "mxfp4")
        case Format.FP8 if tensor.scale is not None and has_exact_form(tensor):
            return _mxfp8(tensor.data, tensor.scale)
    raise ValueError(f"{tensor.name}: MLX has no exact form of {tensor.format.label}")


def _affine(rows: Bytes) -> Packed:
    blocks = rows.reshape(*rows.shape[:-1], -1, Format.Q8_0.block_bytes)  # (..., groups, 34)
    # q + 128 in unsigned bytes, so the bias is -128 d. In f32 both products are exact (11 + 8 bits)
    # and so is their sum; f16 scales would round it.
    shifted: Bytes = blocks[..., 2:] ^ np.uint8(0x80)
    halves = np.ascontiguousarray(blocks[..., :2]).view(np.float16)[..., 0]
    scales = halves.astype(np.float32)
    weight = _words(shifted.reshape(*rows.shape[:-1], -1))
    return Packed(weight, mx.array(scales), mx.array(scales * np.float32(-128)), 8, "affine")


def _mxfp4(rows: Bytes) -> Packed:
    blocks = rows.reshape(*rows.shape[:-1], -1, Format.MXFP4.block_bytes)  # (..., groups, 17)
    codes = np.concatenate([blocks[..., 1:] & 15, blocks[..., 1:] >> 4], axis=-1)  # in order
    pairs: Bytes = codes[..., 0::2] | codes[..., 1::2] << np.uint8(4)  # even column is low
    weight = _words(pairs.reshape(*rows.shape[:-1], -1))
    return Packed(weight, mx.array(blocks[..., 0]), None, 4, "mxfp4")


def _mxfp8(codes: Bytes, scale: Bytes) -> Packed:
    rows, columns = codes.shape
    spread = np.repeat(np.repeat(scale, 128, axis=0), 128 // GROUP, axis=1)
    return Packed(_words(codes), mx.array(spread[:rows, : columns // GROUP]), None, 8, "mxfp8")


def _words(data: Bytes) -> mx.array:
    words: npt.NDArray[np.uint32] = np.ascontiguousarray(data).view(np.uint32)
    return mx.array(words)
