"""The network's operations in plain MLX: what a GPU runs where it has no kernel of its own.

Each is the reference that a kernel is compared with.  Arrays are lazy: nothing here waits for
the device except `numpy`.  Types follow the official inference: activations in the activation
type (bfloat16 on a GPU), norms, gates, softmax and routing inside in float32.
"""

from collections.abc import Sequence
from functools import cache
from types import ModuleType
from typing import cast

import mlx.core as mx
import numpy as np

from ds4_daemon.kernels.ops import Array, RowBuffer

_FP8_MAX = 448.0
_FP4_MAX = 6.0


class MlxRows:
    """A `RowBuffer` over an immutable array: appending makes a new one."""

    def __init__(self, width: int, dtype: mx.Dtype) -> None:
        self._rows: mx.array | None = None
        self._width = width
        self._dtype = dtype  # of adopted rows; appended ones bring theirs

    def __len__(self) -> int:
        return 0 if self._rows is None else int(self._rows.shape[0])

    @property
    def nbytes(self) -> int:
        return 0 if self._rows is None else int(self._rows.nbytes)

    @property
    def held(self) -> dict[int, int]:
        return {id(self._rows): self.nbytes}

    def take(self, other: RowBuffer, count: int) -> None:
        # Arrays never change, so one may be in two buffers; nothing is computed or waited for.
        rows = other.view()
        self._rows = rows if count == rows.shape[0] else rows[:count]

    def share(self, other: RowBuffer, count: int) -> None:
        # An array cannot be in two pieces, and joining them at each step would cost what it saves.
        return None

    def view(self) -> Array:
        return mx.zeros((0, self._width)) if self._rows is None else self._rows

    def append(self, rows: Array) -> Array:
        self._rows = rows if self._rows is None else mx.concatenate([self._rows, rows])
        return self._rows

    def drop_first(self, count: int) -> None:
        if count:
            self._rows = self.view()[count:]

    def part(self, start: int, stop: int) -> Array:
        # Copied at once: a slice would keep the whole buffer alive.
        return np.array(self.view()[start:stop].astype(mx.float32))

    def adopt(self, data: Array, count: int) -> None:
        self._rows = mx.array(data[:count]).astype(self._dtype)


class MlxOps:
    """`Ops` over MLX; see there for what each does."""

    xp: ModuleType = mx
    slice_macs = 1e12  # some ms of a GPU, which wants large products

    def __init__(self, activation_dtype: mx.Dtype) -> None:
        self.activation_dtype = activation_dtype

    def asarray(self, values: Array) -> Array:
        return mx.array(np.ascontiguousarray(values))

    def numpy(self, array: Array) -> Array:
        return np.array(array.astype(mx.float32))

    def run(self, arrays: Sequence[Array]) -> None:
        mx.async_eval(*arrays)

    def f32(self, x: Array) -> Array:
        return x.astype(mx.float32)

    def activation(self, x: Array) -> Array:
        return x.astype(self.activation_dtype)

    def rows(self, width: int, *, activations: bool = False) -> RowBuffer:
        return MlxRows(width, self.activation_dtype if activations else mx.float32)

    def rms_norm(self, x: Array, weight: Array | None, eps: float) -> Array:
        y = x.astype(mx.float32)
        y = y * mx.rsqrt((y * y).mean(-1, keepdims=True) + eps)
        return (y if weight is None else y * weight).astype(x.dtype)

    def sigmoid(self, x: Array) -> Array:
        return mx.sigmoid(x)

    def softmax(self, x: Array, axis: int) -> Array:
        return mx.softmax(x, axis=axis)

    def swiglu(self, gate_up: Array, limit: float) -> Array:
        gate, up = mx.split(gate_up.astype(mx.float32), 2, axis=-1)
        if limit != float("inf"):
            gate, up = mx.minimum(gate, limit), mx.clip(up, -limit, limit)
        return (mx.sigmoid(gate) * gate * up).astype(gate_up.dtype)

    def router_scores(self, logits: Array) -> Array:
        return mx.sqrt(mx.logaddexp(logits, 0.0))

    def rope_table(self, positions: Array, inv_freq: Array) -> Array:
        angles = mx.array(np.asarray(positions, np.float32)[..., None] * np.asarray(inv_freq))
        return mx.stack([mx.cos(angles), mx.sin(angles)], axis=-1)

    def rope(self, x: Array, cos_sin: Array, *, inverse: bool = False) -> Array:
        rotated = 2 * cos_sin.shape[-2]
        cos, sin = cos_sin[..., 0], cos_sin[..., 1]
        if inverse:
            sin = -sin
        pairs = x[..., -rotated:].astype(mx.float32).reshape(*x.shape[:-1], -1, 2)
        x0, x1 = pairs[..., 0], pairs[..., 1]
        turned = mx.stack([x0 * cos - x1 * sin, x0 * sin + x1 * cos], axis=-1)
        turned = turned.reshape(*x.shape[:-1], rotated).astype(x.dtype)
        return mx.concatenate([x[..., :-rotated], turned], axis=-1)

    def sinkhorn(self, logits: Array, iterations: int, eps: float) -> Array:
        c = mx.softmax(logits, axis=-1) + eps
        c = c / (c.sum(-2, keepdims=True) + eps)
        for _ in range(iterations - 1):
            c = c / (c.sum(-1, keepdims=True) + eps)
            c = c / (c.sum(-2, keepdims=True) + eps)
        return c

    def fp8_round(self, x: Array) -> Array:
        v, scale = _scaled_blocks(x, 64, floor=1e-4, largest=_FP8_MAX)
        # Normal codes keep three mantissa bits: round the float's own bits to nearest even.
        bits = v.view(mx.int32)
        normal = ((bits + 0x7FFFF + ((bits >> 20) & 1)) & ~0xFFFFF).view(mx.float32)
        # Subnormal codes are multiples of 2^-9, a power of two: scaling by it is exact.
        subnormal = mx.round(v * 512.0) * (1.0 / 512.0)
        y = mx.where(mx.abs(v) < 2.0**-6, subnormal, normal) * scale
        return y.reshape(x.shape).astype(x.dtype)

    def fp4_round(self, x: Array) -> Array:
        v, scale = _scaled_blocks(x, 32, floor=6 * 2.0**-126, largest=_FP4_MAX)
        v = v + 0.0  # e2m1 keeps the sign of what rounds to zero, not of zero itself
        size = mx.abs(v)
        unit = mx.where(size < 2.0, 0.5, mx.where(size < 4.0, 1.0, 2.0))
        return (mx.round(v / unit) * unit * scale).reshape(x.shape).astype(x.dtype)

    def hadamard(self, x: Array) -> Array:
        return mx.matmul(x.astype(mx.float32), _hadamard_matrix(x.shape[-1])).astype(x.dtype)

    def attend(
        self,
        q: Array,
        parts: Sequence[tuple[Array, Array | None]],
        sink: Array,
        scale: float,
    ) -> Array:
        flat = q.reshape(-1, q.shape[-1])
        scores = []
        for rows, mask in parts:
            s = mx.matmul(flat, rows.astype(q.dtype).T).astype(mx.float32) * scale
            s = s.reshape(*q.shape[:2], -1)
            scores.append(s if mask is None else mx.where(mask[:, None, :], s, -mx.inf))
        scores.append(mx.broadcast_to(sink[None, :, None], (*q.shape[:2], 1)))
        p = mx.softmax(mx.concatenate(scores, axis=-1), axis=-1).astype(q.dtype)
        out, at = mx.zeros_like(flat), 0
        for rows, _ in parts:
            part = p[..., at : at + rows.shape[0]].reshape(flat.shape[0], -1)
            out = out + mx.matmul(part, rows.astype(q.dtype))
            at += rows.shape[0]
        return out.reshape(q.shape)

    def top_k(self, scores: Array, k: int) -> Array:
        if k >= scores.shape[-1]:
            return mx.broadcast_to(mx.arange(scores.shape[-1]), scores.shape)
        return mx.argpartition(scores, -k, axis=-1)[..., -k:]

    def top_k_mask(self, scores: Array, k: int) -> Array:
        chosen = self.top_k(scores, k)
        mask = mx.zeros(scores.shape, dtype=mx.bool_)
        return mx.put_along_axis(mask, chosen, mx.array(True), axis=-1)


def _scaled_blocks(x: Array, size: int, floor: float, largest: float) -> tuple[Array, Array]:
    """Blocks `[..., k, size]` over their power-of-two scale, clipped, and the scale.

    The scale is 2^ceil(log2(max(amax, floor) / largest)), read from the quotient's bits: any
    mantissa bit set means the next power.
    """
    z = x.astype(mx.float32).reshape(*x.shape[:-1], -1, size)
    amax = mx.maximum(mx.abs(z).max(-1, keepdims=True), floor)
    exponent = ((amax / largest).view(mx.int32) + 0x7FFFFF) >> 23
    inverse = ((254 - exponent) << 23).view(mx.float32)
    return mx.clip(z * inverse, -largest, largest), (exponent << 23).view(mx.float32)


@cache
def _hadamard_matrix(n: int) -> mx.array:
    h = np.ones((1, 1), np.float32)
    while len(h) < n:
        h = np.block([[h, h], [h, -h]])
    return mx.array(cast(np.ndarray, h) * np.float32(n**-0.5))
