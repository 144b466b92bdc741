"""Weights for the CPU path: memory-mapped as stored, dequantized at first use.

A matrix is held as float32, transposed so that one row of input runs at the speed of memory,
while all that is held fits a budget; past it, matrices are dequantized for each use and
forgotten, which is slow and never wrong.  Nothing is read when a model is loaded.
"""

import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from ds4_daemon.kernels.numpy_ops import NumpyOps
from ds4_daemon.kernels.ops import Array
from ds4_daemon.model.files import ModelFiles, Tensor
from ds4_daemon.model.quant import dequantize, integers
from ds4_daemon.model.weights import Embedding, Experts, Linear

Get = Callable[[], Array]
Arrange = Callable[[Sequence[Tensor]], Array]

# Half of the second cache of current cores (1 MB and more), but rows long enough for prefetching.
_PART_BYTES = 512 * 1024
_PART_COLUMNS = 256


class Held:
    """Dequantized matrices, kept while they fit `budget_bytes`.

    What is once held stays: layers are used in turn, the order for which evicting the least
    recently used always evicts what is needed next.
    """

    def __init__(self, files: ModelFiles, budget_bytes: int) -> None:
        self._files = files
        self.budget_bytes = budget_bytes
        self.used_bytes = 0
        self._lock = threading.Lock()

    def matrix(self, tensors: Sequence[Tensor], arrange: Arrange) -> Get:
        """A callable that gives `arrange(tensors)`, computed once if there is room to keep it."""
        kept: list[Array] = []  # one, or none

        def get() -> Array:
            if kept:
                return kept[0]
            built = arrange(tensors)
            with self._lock:  # two threads may have built it
                if not kept and self.used_bytes + built.nbytes <= self.budget_bytes:
                    self.used_bytes += built.nbytes
                    kept.append(built)
                    for tensor in tensors:  # not read again: their pages need not stay
                        self._files.release(tensor.name)
            return built

        return get


class NumpyWeights:
    """`Weights` over NumPy; see there for what each does."""

    def __init__(self, files: ModelFiles, ops: NumpyOps, budget_bytes: int) -> None:
        self._files = files
        self._ops = ops
        self.held = Held(files, budget_bytes)

    def check_usable(self) -> None:
        self._files.check_unchanged()

    @property
    def nbytes(self) -> int:
        return self._files.file_bytes

    def vector(self, name: str) -> Array:
        return dequantize(self._files.tensor(name))

    def table(self, name: str) -> Array:
        return integers(self._files.tensor(name))

    def linear(self, *names: str) -> Linear:
        tensors = [self._files.tensor(name) for name in names]
        matrix = self.held.matrix(tensors, _transposed)
        return lambda x: product(x, matrix())

    def grouped_linear(self, name: str, groups: int) -> Linear:
        tensor = self._files.tensor(name)

        def by_group(tensors: Sequence[Tensor]) -> Array:
            w = dequantize(tensors[0])
            return np.ascontiguousarray(w.reshape(groups, -1, w.shape[-1]).swapaxes(1, 2))

        matrix = self.held.matrix([tensor], by_group)

        def apply(x: Array) -> Array:
            return np.matmul(x.swapaxes(1, 2), matrix()).swapaxes(1, 2)

        return apply

    def embedding(self, name: str) -> Embedding:
        tensor = self._files.tensor(name)

        def lookup(ids: Array) -> Array:
            shape = (*ids.shape, tensor.shape[-1])
            return dequantize(replace(tensor, data=tensor.data[ids], shape=shape))

        return lookup

    def gated(self, prefix: str, limit: float) -> Linear:
        gate_up = self.linear(f"{prefix}.w1.weight", f"{prefix}.w3.weight")
        down = self.linear(f"{prefix}.w2.weight")
        return lambda x: down(self._ops.swiglu(gate_up(x), limit))

    def experts(self, layer: int, limit: float) -> Experts:
        w1, w2, w3 = (self._files.experts(layer, w) for w in ("w1", "w2", "w3"))
        gate_up = [self.held.matrix(pair, _transposed) for pair in zip(w1, w3, strict=True)]
        down = [self.held.matrix([t], _transposed) for t in w2]
        rows, columns = w2[0].shape
        chosen = self._files.config.num_experts_per_tok
        return NumpyExperts(gate_up, down, limit, self._ops, 3 * chosen * rows * columns)


class NumpyExperts:
    """`Experts` over matrices `[D, 2F]` (gate and up side by side) and `[F, D]`."""

    def __init__(
        self, gate_up: list[Get], down: list[Get], limit: float, ops: NumpyOps, token_macs: int
    ) -> None:
        self._gate_up = gate_up
        self._down = down
        self._limit = limit
        self._ops = ops
        self._token_macs = token_macs  # multiply-adds of one token's experts

    def parts(self, n: int) -> int:
        if n == 1:
            return 1
        # Half a slice each, for they are what can be cut most finely.
        parts = math.ceil(2 * n * self._token_macs / self._ops.slice_macs)
        return min(len(self._down), parts)

    def __call__(self, x: Array, ids: Array, weights: Array, part: int, y: Array) -> Array:
        if x.shape[1] == 1:
            return self._tokens(x, ids[:, 0], weights[:, 0])[:, None]
        if y is None:
            y = np.zeros_like(x)
        count, parts = len(self._down), self.parts(x.shape[1])
        experts = range(count * part // parts, count * (part + 1) // parts)
        for row in zip(x, ids, weights, y, strict=True):
            self._chunk(*row, experts)
        return y

    def _tokens(self, x: Array, ids: Array, weights: Array) -> Array:
        """x `[B, 1, D]`, a token of each sequence: a vector times each chosen matrix.

        Expert by expert, so that its matrices are read from memory once for all who chose it;
        still each vector by itself and the sums in the order of `ids`, for the same bits in any
        company.
        """
        order = np.argsort(ids, axis=None, kind="stable")
        chosen = ids.reshape(-1)[order].tolist()
        starts = [i for i, e in enumerate(chosen) if not i or e != chosen[i - 1]]
        spans = list(zip(starts, [*starts[1:], len(chosen)], strict=True))
        rows = x[order // ids.shape[1]]  # (B·K, 1, D)
        first = self._gate_up[chosen[0]]()
        h = np.empty((len(chosen), 1, first.shape[1]), np.float32)
        for start, stop in spans:
            np.matmul(rows[start:stop], self._gate_up[chosen[start]](), out=h[start:stop])
        h = self._ops.swiglu(h, self._limit)
        h *= weights.reshape(-1)[order, None, None]
        y = np.empty((len(chosen), x.shape[-1]), np.float32)
        for start, stop in spans:
            y[order[start:stop]] = np.matmul(h[start:stop], self._down[chosen[start]]())[:, 0]
        return np.add.reduce(y.reshape(*ids.shape, -1), axis=1)

    def _chunk(self, x: Array, ids: Array, weights: Array, y: Array, experts: range) -> None:
        """x `[n, D]`: the tokens of each expert together, added to `y [n, D]`."""
        order = np.argsort(ids, axis=None, kind="stable")
        token = order // ids.shape[1]
        w = weights.reshape(-1)[order, None]
        ends = np.cumsum(np.bincount(ids.reshape(-1), minlength=len(self._down))).tolist()
        for e in experts:
            start, end = ends[e - 1] if e else 0, ends[e]
            if end > start:
                rows = token[start:end]
                h = self._ops.swiglu(x[rows] @ self._gate_up[e](), self._limit)
                h *= w[start:end]
                y[rows] += h @ self._down[e]()  # an expert has a token at most once


def product(x: Array, w: Array) -> Array:
    """x `[…, n, K]` times w `[K, N]`; tokens of several sequences (n = 1) each by itself.

    A product of one row is rounded otherwise than a row of a larger product, and BLAS cuts large
    products otherwise than small ones: a token's bits do not depend on its company because every
    call of BLAS for it has the same shape in any company.  Large matrices are taken in parts that
    stay in the second cache while all tokens use them.
    """
    rows, columns = w.shape
    if x.shape[-2] != 1 or w.nbytes <= 2 * _PART_BYTES:
        return np.matmul(x, w)
    width = max(_PART_BYTES // (4 * rows), _PART_COLUMNS)
    y = np.empty((*x.shape[:-1], columns), np.float32)
    for at in range(0, columns, width):
        np.matmul(x, w[:, at : at + width], out=y[..., at : at + width])
    return y


def _transposed(tensors: Sequence[Tensor]) -> Array:
    """Matrices `[out, in]` dequantized into one `[in, Σ out]`."""
    out = np.empty((tensors[0].shape[1], sum(t.shape[0] for t in tensors)), np.float32)
    at = 0
    for t in tensors:
        out[:, at : at + t.shape[0]] = dequantize(t).T
        at += t.shape[0]
    return out
