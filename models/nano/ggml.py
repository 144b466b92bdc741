"""ggml's own quantizer through ctypes: float32 rows to the blocks of a ggml type."""

import ctypes
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt
from ds4_daemon.model.tensor import Bytes
from gguf import GGMLQuantizationType as Type

Floats = npt.NDArray[np.float32]


class Quantizer:
    """A loaded library, as `build_ggml.library` gives it."""

    def __init__(self, library: Path) -> None:
        self._chunk = ctypes.CDLL(str(library)).ggml_quantize_chunk
        self._chunk.restype = ctypes.c_size_t
        pointer, whole = ctypes.c_void_p, ctypes.c_int64
        self._chunk.argtypes = [ctypes.c_int, pointer, pointer, whole, whole, whole, pointer]

    def blocks(self, values: Floats, kind: Type, importance: Floats | None = None) -> Bytes:
        """(rows, columns) → (rows, row bytes); importance has a weight for each column."""
        rows, columns = values.shape
        block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
        if columns % block:
            raise ValueError(f"{columns} columns are not whole blocks of {block}")
        values = np.ascontiguousarray(values, np.float32)
        out = np.empty((rows, columns // block * block_bytes), np.uint8)
        weight = None
        if importance is not None:
            importance = np.ascontiguousarray(importance, np.float32)
            if importance.shape != (columns,):
                raise ValueError(f"{importance.shape} weights for {columns} columns")
            weight = importance.ctypes.data
        written = self._chunk(kind.value, values.ctypes.data, out.ctypes.data, 0, rows, columns,
                              weight)  # fmt: skip
        if written != out.nbytes:
            raise RuntimeError(f"ggml wrote {written} bytes of {out.nbytes}")
        return out
