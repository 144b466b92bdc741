"""The same arithmetic as `blocks`, in plain MLX: raw ggml blocks to float32 wherever MLX runs.

Owns nothing but the order of operations, equal bit for bit to NumPy's on CPU. Vectorised over all
leading axes, so that a step can gather the chosen experts' rows and unpack only those; it is what
kernels are compared with. Called by `moe` and by the kernels' own checks.
"""

from collections.abc import Callable
from functools import cache

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from ds4_daemon.model.quant import codes
from ds4_daemon.model.tensor import Format


def dequantize_blocks(fmt: Format, raw: mx.array) -> mx.array:
    """uint8 (..., row bytes) of a quantized ggml format -> float32 (..., columns)."""
    lead, count = raw.shape[:-1], raw.shape[-1] // fmt.block_bytes
    blocks = raw.reshape(*lead, count, fmt.block_bytes)
    return _BLOCKS[fmt](blocks).reshape(*lead, count * fmt.block)


def _half(blocks: mx.array, at: int) -> mx.array:
    """(..., 1): the f16 that lies at a byte offset of each block."""
    return blocks[..., at : at + 2].view(mx.float16).astype(mx.float32)


def _q8_0(blocks: mx.array) -> mx.array:
    return blocks[..., 2:].view(mx.int8).astype(mx.float32) * _half(blocks, 0)


def _q2_k(blocks: mx.array) -> mx.array:
    lead = blocks.shape[:-1]
    scale = _half(blocks, 80) * (blocks[..., :16] & 15).astype(mx.float32)
    minimum = _half(blocks, 82) * (blocks[..., :16] >> 4).astype(mx.float32)
    shifts = mx.arange(0, 8, 2, dtype=mx.uint8)[:, None]
    quads = (blocks[..., 16:80].reshape(*lead, 2, 1, 32) >> shifts) & 3  # (..., 2, 4, 32)
    values = quads.astype(mx.float32).reshape(*lead, 16, 16)
    return values * scale[..., None] - minimum[..., None]


def _q4_k(blocks: mx.array) -> mx.array:
    lead = blocks.shape[:-1]
    low, high, mixed = blocks[..., 4:8], blocks[..., 8:12], blocks[..., 12:16]
    scales = mx.concatenate([low & 63, (mixed & 15) | ((low >> 2) & 48)], axis=-1)
    minima = mx.concatenate([high & 63, (mixed >> 4) | ((high >> 2) & 48)], axis=-1)
    scale = _half(blocks, 0) * scales.astype(mx.float32)
    minimum = _half(blocks, 2) * minima.astype(mx.float32)
    shifts = mx.array([[0], [4]], dtype=mx.uint8)
    nibbles = (blocks[..., 16:].reshape(*lead, 4, 1, 32) >> shifts) & 15  # (..., 4, 2, 32)
    values = nibbles.astype(mx.float32).reshape(*lead, 8, 32)
    return values * scale[..., None] - minimum[..., None]


def _iq2_xxs(blocks: mx.array) -> mx.array:
    lead = blocks.shape[:-1]
    groups = blocks[..., 2:].reshape(*lead, 8, 8)
    word = groups[..., 4:].view(mx.uint32)  # (..., 8, 1)
    scale = _half(blocks, 0)[..., None] * ((word >> 28).astype(mx.float32) + 0.5) * 0.25
    shifts = mx.arange(0, 28, 7, dtype=mx.uint32)
    index = (((word >> shifts) & 127) << 8) | groups[..., :4].astype(mx.uint32)  # (..., 8, 4)
    return _table(codes.iq2_signed_grid)[index].reshape(*lead, 8, 32) * scale


def _mxfp4(blocks: mx.array) -> mx.array:
    packed = blocks[..., 1:]
    nibbles = mx.concatenate([packed & 15, packed >> 4], axis=-1)
    scale = _table(codes.ggml_e8m0_half)[blocks[..., :1]]
    return _table(codes.ggml_e2m1_doubled)[nibbles] * scale


@cache
def _table(make: Callable[[], npt.NDArray[np.float32]]) -> mx.array:
    return mx.array(make())


_BLOCKS: dict[Format, Callable[[mx.array], mx.array]] = {
    Format.Q8_0: _q8_0,
    Format.Q2_K: _q2_k,
    Format.Q4_K: _q4_k,
    Format.IQ2_XXS: _iq2_xxs,
    Format.MXFP4: _mxfp4,
}
