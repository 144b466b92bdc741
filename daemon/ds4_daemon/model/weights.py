"""What the network asks of weights, whatever holds them.

A `Weights` turns the tensors of a model's files into callables on the arrays of one backend:
`weights_numpy` for a CPU, `weights_mlx` for a GPU.  Names are those of the released
checkpoint; the network never sees a file, a quantization format or a block.
"""

from typing import Protocol

from ds4_daemon.kernels.ops import Array


class Linear(Protocol):
    """x `[..., in]` → `[..., out]`, in float32 or the activation type."""

    def __call__(self, x: Array) -> Array: ...


class Embedding(Protocol):
    """Token ids `[B, n]` (NumPy int32) → rows `[B, n, D]`."""

    def __call__(self, ids: Array) -> Array: ...


class Experts(Protocol):
    """The routed experts of one layer."""

    def parts(self, n: int) -> int:
        """In how many parts to compute `n` tokens of each sequence, so that others wait less."""

    def __call__(self, x: Array, ids: Array, weights: Array, part: int, y: Array) -> Array:
        """Σ over the chosen experts of weight · expert(x), the experts of this part alone.

        x `[B, n, D]`, ids and weights `[B, n, K]` → `[B, n, D]`, added to `y`, what the part
        before returned, which may be overwritten; None for part 0.  A sequence's rows do not
        depend on the other sequences of the batch.
        """


class Weights(Protocol):
    """The tensors of one model, on one device."""

    def vector(self, name: str) -> Array:
        """A tensor held as float32 (norms, scales, biases, sinks, position embeddings)."""

    def table(self, name: str) -> Array:
        """An integer table `[vocab, k]` as int32."""

    def linear(self, *names: str) -> Linear:
        """One product with the matrices of these names, outputs side by side."""

    def grouped_linear(self, name: str, groups: int) -> Linear:
        """x `[B, n, groups, in]` → `[B, n, groups, out]`, a matrix each."""

    def embedding(self, name: str) -> Embedding: ...

    def experts(self, layer: int, limit: float) -> Experts: ...

    def gated(self, prefix: str, limit: float) -> Linear:
        """A SwiGLU feed-forward w2(silu(w1 x) · w3 x) with its clamp at `limit`."""

    def check_usable(self) -> None:
        """Raise ModelFileError where weights are still read from files that changed."""

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors as they are stored."""
