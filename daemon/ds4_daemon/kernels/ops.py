"""The array operations of the network that are more than one line of NumPy or MLX.

`Ops` is the seam between the network, written once over an array namespace `xp` (`numpy` or
`mlx.core`, whose names agree for all that the network uses), and the two sets of
implementations: `numpy_ops` for a CPU, `mlx_ops` for a GPU and as the plain reference of every
kernel.  Nothing here knows weights, layers or sequences.
"""

from collections.abc import Sequence
from types import ModuleType
from typing import Any, Protocol

# An array of the namespace in use.  Neither library types shapes, so neither do we.
Array = Any


class RowBuffer(Protocol):
    """A queue of float rows `[length, width]` that lives as long as a session."""

    def __len__(self) -> int: ...

    def append(self, rows: Array) -> Array:
        """Add rows `[n, width]` at the end and return all rows; valid until the next call."""

    def view(self) -> Array:
        """All rows, `[length, width]`; valid until the next `append` or `drop_first`."""

    def drop_first(self, count: int) -> None:
        """Forget the oldest `count` rows."""

    def part(self, start: int, stop: int) -> Array:
        """Rows `start` to `stop` as float32 NumPy, which no later call changes."""

    def adopt(self, data: Array, count: int) -> None:
        """Hold the first `count` rows of `data` (float32 NumPy) instead of all there were.

        `data` belongs to the buffer from now on; rows past `count` are room to grow.
        """

    @property
    def nbytes(self) -> int:
        """Bytes reserved, in use or not."""

    @property
    def held(self) -> dict[int, int]:
        """Bytes of each piece of memory that it keeps from being freed, by what tells them apart.

        Buffers that hold the same piece name the same one.
        """

    def take(self, other: "RowBuffer", count: int) -> None:
        """Hold the first `count` rows of `other`, in its memory until this one grows."""

    def share(self, other: "RowBuffer", count: int) -> None:
        """Hold the first `count` rows in the memory of `other`, where they are equal bit for bit.

        Nothing else changes: the first `append` or `view` makes the rows its own again.
        """


class Ops(Protocol):
    """What both backends offer.  Shapes are those of the arguments unless said otherwise."""

    xp: ModuleType
    slice_macs: float  # multiply-adds that a slice of a pass should take, about

    def asarray(self, values: Array) -> Array:
        """Bring a NumPy array to the backend, in the same type."""

    def numpy(self, array: Array) -> Array:
        """Bring an array back as float32 NumPy (waits for it)."""

    def run(self, arrays: Sequence[Array]) -> None:
        """Start computing what is lazy; a no-op where nothing is."""

    def f32(self, x: Array) -> Array:
        """`x` as float32, itself where it already is."""

    def activation(self, x: Array) -> Array:
        """`x` in the activation type."""

    def rows(self, width: int, *, activations: bool = False) -> RowBuffer:
        """An empty buffer of float32 rows, or of rows in the activation type."""

    def rms_norm(self, x: Array, weight: Array | None, eps: float) -> Array:
        """x / sqrt(mean(x²) + eps) [· weight] over the last axis, inside in float32."""

    def sigmoid(self, x: Array) -> Array: ...

    def softmax(self, x: Array, axis: int) -> Array:
        """Softmax over `axis`; -inf entries get weight 0."""

    def swiglu(self, gate_up: Array, limit: float) -> Array:
        """silu(min(gate, limit)) · clip(up, ±limit) for `[..., 2F]` → `[..., F]`; inf: no clamp."""

    def router_scores(self, logits: Array) -> Array:
        """sqrt(softplus(logits))."""

    def rope(self, x: Array, cos_sin: Array, *, inverse: bool = False) -> Array:
        """Rotate the last channels of `x [..., C]` in interleaved pairs; may overwrite `x`.

        `cos_sin` is what `rope_table` returned for positions that broadcast against `x`'s.
        """

    def rope_table(self, positions: Array, inv_freq: Array) -> Array:
        """Angles in float32 from integer positions `[...]` and `inv_freq [R/2]`."""

    def sinkhorn(self, logits: Array, iterations: int, eps: float) -> Array:
        """`[B, n, m, m]`: softmax over rows, plus eps; then columns and rows normalised in turn.

        Columns first, `iterations` times; rows once less.
        """

    def fp8_round(self, x: Array) -> Array:
        """Round trip through e4m3 with a power-of-two scale per 64 channels."""

    def fp4_round(self, x: Array) -> Array:
        """Round trip through e2m1 with a power-of-two scale per 32 channels."""

    def hadamard(self, x: Array) -> Array:
        """Orthonormal Walsh-Hadamard transform of the last axis (a power of two)."""

    def attend(
        self,
        q: Array,
        parts: Sequence[tuple[Array, Array | None]],
        sink: Array,
        scale: float,
    ) -> Array:
        """Softmax attention where keys are values.

        `q [n, H, C]`; each part is rows `[k, C]` with a visibility mask `[n, k]` (None: all);
        `sink [H]` joins the denominator only.  Returns `[n, H, C]`.
        """

    def top_k_mask(self, scores: Array, k: int) -> Array:
        """Boolean mask of the `k` largest along the last axis; of equals, any."""

    def top_k(self, scores: Array, k: int) -> Array:
        """Indices of the `k` largest along the last axis, in no order; of equals, any."""
