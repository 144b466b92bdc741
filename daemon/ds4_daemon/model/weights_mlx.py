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
from ds4_daemon.model.files import ModelFiles
from ds4_daemon.model.quant import dequantize, integers
from ds4_daemon.model.quant.blocks_mlx import dequantize_blocks
from ds4_daemon.model.stacks_mlx import PLAIN, Stack, plain_array, stacked
from ds4_daemon.model.weights import Embedding, Experts, Linear


class MlxWeights:
    """`Weights` over MLX; see there for what each does."""

    def __init__(self, files: ModelFiles, ops: MlxOps) -> None:
        self._files = files
        self._ops = ops

    def check_usable(self) -> None:
        """All are on the device; embeddings too."""

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
        if tensor.format not in PLAIN:
            raw = mx.array(tensor.data)
            return lambda ids: self._ops.activation(
                dequantize_blocks(tensor.format, raw[mx.array(ids)])
            )
        rows = plain_array(tensor)
        return lambda ids: self._ops.activation(rows[mx.array(ids)])

    def gated(self, prefix: str, limit: float) -> Linear:
        gate_up = self.linear(f"{prefix}.w1.weight", f"{prefix}.w3.weight")
        down = self.linear(f"{prefix}.w2.weight")
        return lambda x: down(self._ops.swiglu(gate_up(x), limit))

    def experts(self, layer: int, limit: float) -> Experts:
        w1, w2, w3 = (
            stacked(self._files.experts(layer, part), self._files) for part in ("w1", "w2", "w3")
        )
        return MlxExperts(w1, w3, w2, limit, self._ops)

    def _stack(self, names: Sequence[str]) -> Stack:
        return stacked([self._files.tensor(name) for name in names], self._files)


class MlxExperts:
    """`Experts` over three stacks: gate, up and down."""

    def __init__(self, gate: Stack, up: Stack, down: Stack, limit: float, ops: MlxOps) -> None:
        self._gate = gate
        self._up = up
        self._down = down
        self._limit = limit
        self._ops = ops

    def parts(self, n: int) -> int:
        return 1

    def __call__(self, x: Array, ids: Array, weights: Array, part: int, y: Array) -> Array:
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
        h = mx.concatenate([s.choose(rows, experts, many) for s in (self._gate, self._up)], axis=-1)
        h = self._ops.swiglu(h, self._limit) * w.astype(x.dtype)
        y = self._down.choose(h, experts, many)
        if many:
            y = y[mx.array(np.argsort(order))]
        return y.reshape(*x.shape[:-1], k, width).sum(-2)
