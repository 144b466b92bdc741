"""Weights for a GPU, and for MLX's own CPU path: resident, and quantized where they were.

Q8_0, FP4 and FP8 are multiplied in MLX's own exact forms.  The other block formats stay raw;
of experts only the chosen ones are dequantized.  This is plain MLX: kernels that read blocks
directly replace the products one by one.
"""

from collections.abc import Sequence

import mlx.core as mx
import numpy as np

from ds4_daemon.kernels.mlx_ops import MlxOps
from ds4_daemon.kernels.ops import Array
from ds4_daemon.model.files import ModelFiles, Tensor
from ds4_daemon.model.quant import dequantize, integers
from ds4_daemon.model.quant.blocks_mlx import dequantize_blocks
from ds4_daemon.model.quant.mlx_exact import GROUP, Packed, has_exact_form, pack
from ds4_daemon.model.tensor import Format
from ds4_daemon.model.weights import Embedding, Experts, Linear

# Expert matrices unpacked at a time: a whole layer of the full-size model would take 12.9 GB.
_SCRATCH_BYTES = 1_000_000_000

_PLAIN = {
    Format.F32: (np.uint32, mx.float32),
    Format.F16: (np.uint16, mx.float16),
    Format.BF16: (np.uint16, mx.bfloat16),
}


class MlxWeights:
    """`Weights` over MLX; see there for what each does."""

    def __init__(self, files: ModelFiles, ops: MlxOps) -> None:
        self._files = files
        self._ops = ops

    @property
    def nbytes(self) -> int:
        return self._files.file_bytes

    def vector(self, name: str) -> Array:
        return mx.array(dequantize(self._files.tensor(name)))

    def table(self, name: str) -> Array:
        return mx.array(integers(self._files.tensor(name)))

    def linear(self, *names: str) -> Linear:
        parts = [self._stack([name]) for name in names]

        def apply(x: Array) -> Array:
            rows = x.reshape(1, -1, x.shape[-1])
            outs = [part.apply(rows) for part in parts]
            y = outs[0] if len(outs) == 1 else mx.concatenate(outs, axis=-1)
            return y.reshape(*x.shape[:-1], -1)

        return apply

    def grouped_linear(self, name: str, groups: int) -> Linear:
        stack = self._stack([name]).split(groups)

        def apply(x: Array) -> Array:
            batch, n = x.shape[:2]
            y = stack.apply(x.reshape(batch * n, groups, -1).swapaxes(0, 1))
            return y.swapaxes(0, 1).reshape(batch, n, groups, -1)

        return apply

    def embedding(self, name: str) -> Embedding:
        tensor = self._files.tensor(name)
        if tensor.format not in _PLAIN:
            raw = mx.array(tensor.data)
            return lambda ids: self._ops.activation(
                dequantize_blocks(tensor.format, raw[mx.array(ids)])
            )
        rows = _plain(tensor)
        return lambda ids: self._ops.activation(rows[mx.array(ids)])

    def gated(self, prefix: str, limit: float) -> Linear:
        gate_up = self.linear(f"{prefix}.w1.weight", f"{prefix}.w3.weight")
        down = self.linear(f"{prefix}.w2.weight")
        return lambda x: down(self._ops.swiglu(gate_up(x), limit))

    def experts(self, layer: int, limit: float) -> Experts:
        w1, w2, w3 = (
            _stacked(self._files.experts(layer, part), self._files) for part in ("w1", "w2", "w3")
        )
        return MlxExperts(w1, w3, w2, limit, self._ops)

    def _stack(self, names: Sequence[str]) -> "Stack":
        return _stacked([self._files.tensor(name) for name in names], self._files)


class Stack:
    """Matrices `[E, out, in]` of one format; a plain product or one by chosen experts."""

    def __init__(self, fmt: Format, arrays: Sequence[mx.array | None], packed: Packed | None):
        self._format = fmt
        self._arrays = arrays
        # How MLX multiplies with the arrays as they are; None: plain or raw blocks.
        self._mode = None if packed is None else {"bits": packed.bits, "mode": packed.mode}

    def __len__(self) -> int:
        weight = self._arrays[0]
        assert weight is not None
        return int(weight.shape[0])

    def split(self, groups: int) -> "Stack":
        """One matrix as `groups` matrices of consecutive rows."""
        arrays = [
            None if a is None else a.reshape(groups, a.shape[1] // groups, *a.shape[2:])
            for a in self._arrays
        ]
        stack = Stack(self._format, arrays, None)
        stack._mode = self._mode
        return stack

    def apply(self, x: Array) -> Array:
        """x `[E, R, in]` times matrix by matrix → `[E, R, out]`, in x's type."""
        if self._mode is None:
            y = mx.matmul(x, self._dense(slice(None)).swapaxes(-1, -2))
        else:
            weight, scales, biases = self._arrays
            y = mx.quantized_matmul(
                x, weight, scales, biases, transpose=True, group_size=GROUP, **self._mode
            )
        return y.astype(x.dtype)

    def choose(self, x: Array, experts: Array, in_order: bool) -> Array:
        """x `[R, in]` times the matrix of each row's expert → `[R, out]`, in x's type.

        `in_order`: experts are sorted and many, a NumPy array.
        """
        if self._mode is not None:
            weight, scales, biases = self._arrays
            return mx.gather_qmm(
                x[:, None], weight, scales, biases, rhs_indices=mx.array(experts),
                transpose=True, group_size=GROUP, sorted_indices=in_order, **self._mode,
            )[:, 0].astype(x.dtype)
        if self._format in _PLAIN:
            return self._gather(x, slice(None), mx.array(experts), in_order)
        if not in_order:
            chosen = self._dense(experts).swapaxes(-1, -2).astype(x.dtype)
            return mx.matmul(x[:, None], chosen)[:, 0]
        out_columns = self._arrays[0].shape[1] * x.shape[1] * 4
        step = max(1, _SCRATCH_BYTES // out_columns)
        parts = []
        for first in range(0, len(self), step):
            low, high = np.searchsorted(experts, [first, first + step])
            if high > low:
                local = mx.array(experts[low:high] - first)
                group = slice(first, first + step)
                parts.append(self._gather(x[low:high], group, local, True))
                mx.eval(parts[-1])  # frees the scratch before the next group takes its own
        return mx.concatenate(parts)

    def _gather(self, x: Array, group: slice, local: Array, in_order: bool) -> Array:
        matrices = self._dense(group).swapaxes(-1, -2)
        return mx.gather_mm(
            x[:, None].astype(matrices.dtype), matrices, rhs_indices=local, sorted_indices=in_order
        )[:, 0].astype(x.dtype)

    def _dense(self, chosen: Array | slice) -> Array:
        """The chosen matrices as numbers, `[…, out, in]`."""
        weight = self._arrays[0]
        assert weight is not None
        if self._format in _PLAIN:
            return weight[chosen]
        return dequantize_blocks(self._format, weight[chosen])


class MlxExperts:
    """`Experts` over three stacks: gate, up and down."""

    def __init__(self, gate: Stack, up: Stack, down: Stack, limit: float, ops: MlxOps) -> None:
        self._gate = gate
        self._up = up
        self._down = down
        self._limit = limit
        self._ops = ops

    def __call__(self, x: Array, ids: Array, weights: Array) -> Array:
        k, width = ids.shape[-1], x.shape[-1]
        flat = x.reshape(-1, width)
        experts, w = ids.reshape(-1), weights.reshape(-1, 1)
        # Many rows: sorted by expert, so that each expert's matrices are used in one go.
        many = experts.size > len(self._gate)
        if many:
            experts = np.array(experts)
            order = np.argsort(experts, kind="stable")
            rows, experts, w = flat[mx.array(order // k)], experts[order], w[mx.array(order)]
        else:
            rows = mx.repeat(flat, k, axis=0)
        h = mx.concatenate(
            [s.choose(rows, experts, many) for s in (self._gate, self._up)], axis=-1
        )
        h = self._ops.swiglu(h, self._limit) * w.astype(x.dtype)
        y = self._down.choose(h, experts, many)
        if many:
            y = y[mx.array(np.argsort(order))]
        return y.reshape(*x.shape[:-1], k, width).sum(-2)


def _stacked(tensors: Sequence[Tensor], files: ModelFiles) -> Stack:
    """Tensors of one shape and format, resident on the device."""
    first = tensors[0]
    if has_exact_form(first):
        packs = []
        for tensor in tensors:
            packs.append(pack(tensor))
            mx.eval([a for a in packs[-1][:3] if a is not None])
            files.release(tensor.name)
        arrays = [
            None if parts[0] is None else mx.stack(parts)
            for parts in ([p[i] for p in packs] for i in range(3))
        ]
        mx.eval([a for a in arrays if a is not None])
        return Stack(first.format, arrays, packs[0])
    if first.format is Format.FP8:  # rows that are no whole groups: no exact form
        matrices = mx.stack([mx.array(dequantize(t)) for t in tensors])
        return Stack(Format.F32, [matrices], None)
    raw = mx.stack([_plain(t) if t.format in _PLAIN else mx.array(t.data) for t in tensors])
    mx.eval(raw)
    for tensor in tensors:
        files.release(tensor.name)
    return Stack(first.format, [raw], None)


def _plain(tensor: Tensor) -> mx.array:
    """An F32, F16 or BF16 tensor as it is."""
    word, dtype = _PLAIN[tensor.format]
    return mx.array(np.ascontiguousarray(tensor.data).view(word)).view(dtype)
