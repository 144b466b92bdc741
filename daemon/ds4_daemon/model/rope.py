"""Rotary frequencies: a plain table for sliding-window layers, YaRN for compressed ones.

Model-spec §1: one table a layer serves queries, keys, compressed entries, the indexer and the
inverse rotation of the output.  YaRN here has no magnitude factor.
"""

from math import ceil, floor, log, pi

import numpy as np

from ds4_daemon.kernels.ops import Array
from ds4_daemon.model.config import ModelConfig


def inverse_frequencies(config: ModelConfig, ratio: int) -> Array:
    """Radians a position for each rotated pair, float32 `[qk_rope_head_dim / 2]`."""
    dim = config.qk_rope_head_dim
    base = config.compress_rope_theta if ratio else config.rope_theta
    steps = np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim)
    plain = np.float32(1) / np.float32(base) ** steps
    if not ratio:
        return plain
    yarn = config.rope_scaling

    def turns_at(turns: float) -> float:
        """The pair that makes `turns` rotations over the original context."""
        return dim * log(yarn.original_max_position_embeddings / (turns * 2 * pi)) / (2 * log(base))

    low = max(floor(turns_at(yarn.beta_fast)), 0)
    high = min(ceil(turns_at(yarn.beta_slow)), dim - 1)
    ramp = (np.arange(dim // 2, dtype=np.float32) - low) / max(high - low, 1e-3)
    ramp = np.clip(ramp, 0, 1).astype(np.float32)
    return plain * (1 - ramp) + plain / np.float32(yarn.factor) * ramp
