"""Stacks of equal matrices on the device, `[E, out, in]`, in the three forms that weights take.

`PlainStack` holds numbers, `ExactStack` what MLX multiplies with as it is quantized, `BlockStack`
raw ggml blocks that are unpacked when they are used.  A single matrix is a stack of one.  Made by
`weights_mlx`; knows no names and no layers.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Protocol, TypeVar

import mlx.core as mx
import numpy as np

from ds4_daemon.kernels.ops import Array
from ds4_daemon.model.files import ModelFiles, Tensor
from ds4_daemon.model.quant import dequantize
from ds4_daemon.model.quant.blocks_mlx import dequantize_blocks
from ds4_daemon.model.quant.mlx_exact import GROUP, Packed, has_exact_form, pack
from ds4_daemon.model.tensor import Format

# Matrices unpacked at a time: a whole layer of the full-size model's experts would take 12.9 GB.
_SCRATCH_BYTES = 1_000_000_000

PLAIN = {
    Format.F32: (np.uint32, mx.float32),
    Format.F16: (np.uint16, mx.float16),
    Format.BF16: (np.uint16, mx.bfloat16),
}

Loaded = TypeVar("Loaded", mx.array, Packed)


class Stack(Protocol):
    """E matrices `[out, in]`; products are in the type of x."""

    def __len__(self) -> int: ...

    def split(self, groups: int) -> "Stack":
        """A stack of one as a stack of `groups`, each of consecutive rows."""

    def apply(self, x: Array) -> Array:
        """x `[E, R, in]`, matrix by matrix → `[E, R, out]`."""

    def choose(self, x: Array, experts: Array, in_order: bool) -> Array:
        """x `[R, in]` times the matrix that each row names → `[R, out]`.

        `in_order`: many rows, and `experts` is a sorted NumPy array.
        """


class PlainStack:
    """Numbers, in the type of the file."""

    def __init__(self, matrices: mx.array) -> None:
        self._matrices = matrices

    def __len__(self) -> int:
        return int(self._matrices.shape[0])

    def split(self, groups: int) -> Stack:
        return PlainStack(_split(self._matrices, groups))

    def apply(self, x: Array) -> Array:
        return mx.matmul(x, self._matrices.swapaxes(-1, -2)).astype(x.dtype)

    def choose(self, x: Array, experts: Array, in_order: bool) -> Array:
        if in_order:
            return mx.concatenate(list(_runs(x, self._matrices, experts, 0)))
        return _each(x, self._matrices[experts])


class ExactStack:
    """A quantized form that MLX computes with; see `mlx_exact`."""

    def __init__(self, packed: Packed) -> None:
        self._packed = packed

    def __len__(self) -> int:
        return int(self._packed.weight.shape[0])

    def split(self, groups: int) -> Stack:
        weight, scales, biases, bits, mode = self._packed
        halved = None if biases is None else _split(biases, groups)
        return ExactStack(
            Packed(_split(weight, groups), _split(scales, groups), halved, bits, mode)
        )

    def apply(self, x: Array) -> Array:
        weight, scales, biases, bits, mode = self._packed
        if len(self) == 1:  # MLX is quicker on two axes than on three
            one = None if biases is None else biases[0]
            y = mx.quantized_matmul(
                x[0], weight[0], scales[0], one, group_size=GROUP, bits=bits, mode=mode
            )[None]
        else:
            y = mx.quantized_matmul(
                x, weight, scales, biases, group_size=GROUP, bits=bits, mode=mode
            )
        return y.astype(x.dtype)

    def choose(self, x: Array, experts: Array, in_order: bool) -> Array:
        weight, scales, biases, bits, mode = self._packed
        return mx.gather_qmm(
            x[:, None],
            weight,
            scales,
            biases,
            rhs_indices=mx.array(experts),
            group_size=GROUP,
            bits=bits,
            mode=mode,
            sorted_indices=in_order,
        )[:, 0].astype(x.dtype)


class BlockStack:
    """Raw blocks `[E, out, row bytes]`; only the matrices in use are unpacked."""

    def __init__(self, fmt: Format, raw: mx.array) -> None:
        self._format = fmt
        self._raw = raw

    def __len__(self) -> int:
        return int(self._raw.shape[0])

    def split(self, groups: int) -> Stack:
        return BlockStack(self._format, _split(self._raw, groups))

    def apply(self, x: Array) -> Array:
        matrices = dequantize_blocks(self._format, self._raw)
        return mx.matmul(x, matrices.swapaxes(-1, -2)).astype(x.dtype)

    def choose(self, x: Array, experts: Array, in_order: bool) -> Array:
        if not in_order:
            return _each(x, dequantize_blocks(self._format, self._raw[experts]))
        matrix_bytes = 4 * self._raw.shape[1] * x.shape[1]
        step = max(1, _SCRATCH_BYTES // matrix_bytes)
        parts: list[mx.array] = []
        for first in range(0, len(self), step):
            group = dequantize_blocks(self._format, self._raw[first : first + step])
            parts.extend(_runs(x, group, experts, first))
            mx.eval(parts)  # frees the scratch before the next group takes its own
        return mx.concatenate(parts)


def stacked(tensors: Sequence[Tensor], files: ModelFiles) -> Stack:
    """Tensors of one shape and format, resident on the device, their file pages given back."""
    first = tensors[0]
    stack: Stack
    if has_exact_form(first):
        stack = ExactStack(_packed([_resident(pack(t), t, files) for t in tensors]))
    elif first.format in PLAIN:
        stack = PlainStack(mx.stack([_resident(plain_array(t), t, files) for t in tensors]))
    elif first.format is Format.FP8:  # rows that are no whole groups have no exact form
        numbers = [_resident(mx.array(dequantize(t)), t, files) for t in tensors]
        stack = PlainStack(mx.stack(numbers))
    else:
        raw = [_resident(mx.array(t.data), t, files) for t in tensors]
        stack = BlockStack(first.format, mx.stack(raw))
    return stack


def plain_array(tensor: Tensor) -> mx.array:
    """An F32, F16 or BF16 tensor as it is."""
    word, dtype = PLAIN[tensor.format]
    return mx.array(np.ascontiguousarray(tensor.data).view(word)).view(dtype)


def _resident(loaded: Loaded, tensor: Tensor, files: ModelFiles) -> Loaded:
    """Wait until a tensor is on the device, so that only one at a time is also in the file map."""
    mx.eval(loaded)
    files.release(tensor.name)
    return loaded


def _packed(parts: Sequence[Packed]) -> Packed:
    """Packed matrices as one stack."""
    biases = [p.biases for p in parts if p.biases is not None]
    stack = Packed(
        mx.stack([p.weight for p in parts]),
        mx.stack([p.scales for p in parts]),
        mx.stack(biases) if biases else None,
        parts[0].bits,
        parts[0].mode,
    )
    mx.eval(stack)
    return stack


def _split(stack: mx.array, groups: int) -> mx.array:
    _, rows, *rest = stack.shape
    return stack.reshape(groups, rows // groups, *rest)


# MLX has `gather_mm` for the two below; on CUDA (0.32.4) its sorted form multiplies float32 with
# ten bits of mantissa whatever MLX_ENABLE_TF32 says.


def _each(x: Array, matrices: mx.array) -> Array:
    """x `[R, in]` times a matrix for each row, `[R, out, in]` → `[R, out]`."""
    return mx.matmul(x[:, None], matrices.swapaxes(-1, -2)).astype(x.dtype)[:, 0]


def _runs(x: Array, matrices: mx.array, experts: Array, first: int) -> Iterator[mx.array]:
    """The products of rows whose sorted experts are `first`, `first` + 1, …, in order."""
    ends = np.searchsorted(experts, np.arange(first, first + matrices.shape[0] + 1)).tolist()
    for i, (low, high) in enumerate(pairwise(ends)):
        if high > low:
            yield mx.matmul(x[low:high], matrices[i].T).astype(x.dtype)
