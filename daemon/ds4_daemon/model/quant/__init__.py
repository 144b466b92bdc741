"""Packed weights to numbers: the one door for tensors, whatever their format.

Owns the choice by format and the slicing by rows; `blocks` (NumPy) and `blocks_mlx` do the
arithmetic, `mlx_exact` repacks what MLX can compute with as it is. Called by `load` and `moe`.
"""

import numpy as np
import numpy.typing as npt

from ds4_daemon.model.quant import blocks
from ds4_daemon.model.tensor import Format, Tensor

_ALL = slice(None)


def dequantize(tensor: Tensor, rows: slice | None = None) -> npt.NDArray[np.float32]:
    """float32 in the tensor's shape, or only `rows` of its first axis (step 1). A fresh array."""
    chosen = rows or _ALL
    data = tensor.data[chosen]
    if tensor.scale is None:
        return blocks.dequantize_blocks(tensor.format, data)
    if tensor.format is Format.FP8:
        first_row = chosen.indices(tensor.shape[0])[0]
        return blocks.dequantize_fp8(data, tensor.scale, first_row)
    return blocks.dequantize_fp4(data, tensor.scale[chosen])


def integers(tensor: Tensor) -> npt.NDArray[np.int32]:
    """An I32 or I64 tensor (`tid2eid`) as int32."""
    wide = np.int32 if tensor.format is Format.I32 else np.int64
    return tensor.data.copy().view(wide).astype(np.int32)
