"""Packs the codes that training projected to into the file's own blocks.

So the shipped experts are, bit for bit, what quantization-aware training computed with: ggml's
search would choose other codes. Every result is read back by the `gguf` package, which is not ours,
and compared. Block layouts: ggml's `block_iq2_xxs` (66 bytes) and `block_q2_K` (84 bytes).
"""

import numpy as np
import torch
from ds4_daemon.model.tensor import Bytes
from gguf import GGMLQuantizationType as Type
from gguf import quants

from models.nano import qat

LARGEST = 1e4  # far from any weight, and far enough from where a half's scale overflows


def expert_blocks(weights: torch.Tensor, kind: Type) -> Bytes:
    """(..., rows, columns) → (..., rows, row bytes) uint8: the nearest weights of IQ2_XXS or Q2_K.

    Raises ValueError for another type, columns that are not whole blocks of 256, or weights that
    are NaN or larger than LARGEST.
    """
    if weights.shape[-1] % qat.BLOCK:
        raise ValueError(f"{weights.shape[-1]} columns are not whole blocks of {qat.BLOCK}")
    if weights.isnan().any() or weights.abs().max() > LARGEST:
        raise ValueError(f"weights are NaN, or larger than {LARGEST:g}")
    if kind == Type.IQ2_XXS:
        iq2 = qat.iq2_xxs_codes(weights)
        packed, values = _iq2_xxs(iq2), iq2.values()
    elif kind == Type.Q2_K:
        q2 = qat.q2_k_codes(weights)
        packed, values = _q2_k(q2), q2.values()
    else:
        raise ValueError(f"experts are packed as IQ2_XXS or Q2_K, not {kind.name}")
    wanted = values.numpy().view(np.uint32)
    if not np.array_equal(quants.dequantize(packed, kind).view(np.uint32), wanted):
        raise RuntimeError(f"packed {kind.name} blocks do not read back as they were projected")
    return packed.reshape(*weights.shape[:-1], -1)


def _iq2_xxs(codes: qat.Iq2Xxs) -> Bytes:
    """A half, then for each group of 32: four codeword numbers; four times 7 signs, 4 of scale."""
    words = np.empty((len(codes.d), 8, 2), "<u4")
    words[..., 0] = codes.index.numpy().astype(np.uint8).view("<u4")[..., 0]
    # The eighth sign makes the minuses even: it is not stored.
    minus = (codes.sign.numpy() < 0)[..., :7]
    signs = (minus << np.arange(7, dtype=np.uint32)).sum(axis=-1, dtype=np.uint32)
    words[..., 1] = (signs << np.arange(0, 28, 7, dtype=np.uint32)).sum(axis=-1, dtype=np.uint32)
    words[..., 1] |= codes.scale.numpy().astype(np.uint32) << 28
    return np.concatenate([_half(codes.d), words.view(np.uint8).reshape(len(words), -1)], axis=1)


def _q2_k(codes: qat.Q2K) -> Bytes:
    """16 nibble pairs of scale and minimum, 64 bytes of 2-bit codes, two halves.

    A byte has the codes of places i, i + 32, i + 64 and i + 96 of its half of the block.
    """
    nibbles = (codes.scale.numpy() + 16 * codes.minimum.numpy()).astype(np.uint8)
    q = codes.q.numpy().astype(np.uint8).reshape(-1, 2, 4, 32)
    shifts = np.array([0, 2, 4, 6], np.uint8)[:, None]
    quarters = (q << shifts).sum(axis=2, dtype=np.uint8).reshape(len(q), -1)
    return np.concatenate([nibbles, quarters, _half(codes.d), _half(codes.d_min)], axis=1)


def _half(scale: torch.Tensor) -> Bytes:
    half: Bytes = scale.numpy().astype("<f2").view(np.uint8)
    return half
