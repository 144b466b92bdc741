"""What a tensor in a model file is: its name, its shape, the format of its bytes, and those bytes.

Owns the list of formats and their block sizes; a tensor's bytes stay in the memory map of the file.
It does not know files or names (`files`, `layout`) nor how to turn bytes into numbers (`quant`).
"""

from dataclasses import dataclass
from enum import Enum

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]


class Format(Enum):
    """How numbers are packed: `block` values of a row lie together in `block_bytes` bytes."""

    F32 = ("F32", 1, 4)
    F16 = ("F16", 1, 2)
    BF16 = ("BF16", 1, 2)
    I32 = ("I32", 1, 4)
    I64 = ("I64", 1, 8)
    Q8_0 = ("Q8_0", 32, 34)
    Q4_K = ("Q4_K", 256, 144)
    Q2_K = ("Q2_K", 256, 84)
    IQ2_XXS = ("IQ2_XXS", 256, 66)
    MXFP4 = ("MXFP4", 32, 17)  # ggml's: scale and codes in one block, nibbles 0-15 then 16-31
    FP4 = ("FP4", 2, 1)  # the release's: even column in the low nibble, scales of 32 columns apart
    FP8 = ("FP8", 1, 1)  # e4m3, scales of 128 x 128 tiles apart

    def __init__(self, label: str, block: int, block_bytes: int) -> None:
        self.label = label
        self.block = block
        self.block_bytes = block_bytes

    def row_bytes(self, columns: int) -> int:
        """Bytes of one row; `columns` is a multiple of `block`."""
        return columns // self.block * self.block_bytes


def scale_shape(fmt: Format, shape: tuple[int, ...]) -> tuple[int, int] | None:
    """Shape of the separate e8m0 scales of an (out, in) tensor; None if blocks carry their own."""
    match fmt:
        case Format.FP8:
            return -(-shape[0] // 128), -(-shape[1] // 128)
        case Format.FP4:
            return shape[0], shape[1] // 32
        case _:
            return None


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor: `shape` as in torch (out, in), `data` uint8 (*shape[:-1], row bytes), not copied.

    `scale` is uint8 e8m0 exponents: FP8 [ceil(out/128), ceil(in/128)], FP4 [out, in/32], else None.
    """

    name: str
    shape: tuple[int, ...]
    format: Format
    data: Bytes
    scale: Bytes | None = None

    @property
    def nbytes(self) -> int:
        return self.data.nbytes + (0 if self.scale is None else self.scale.nbytes)
