"""The tensors of a model, one at a time, from either file layout under one naming.

Owns the memory maps. A tensor is a view of its map: nothing is read until someone looks at the
bytes, and `release` gives the pages back. Names are those of the released checkpoint whatever the
file. It does not decode numbers (`quant`). Called by `load` and by the daemon's tokenizer set-up.
"""

import mmap
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from ds4_daemon.errors import ModelFileError
from ds4_daemon.model.config import ModelConfig
from ds4_daemon.model.gguf_file import read_gguf
from ds4_daemon.model.layout import Entry, Region, expert_name
from ds4_daemon.model.safetensors_file import read_release
from ds4_daemon.model.tensor import Bytes, Format, Tensor, scale_shape

__all__ = ["Format", "ModelFiles", "Tensor", "open_model"]

TokenizerSource = Path | Mapping[str, Any] | None


class ModelFiles:
    """An opened, checked model; `tokenizer_source` is a tokenizer.json, GGUF metadata, or None."""

    def __init__(
        self,
        config: ModelConfig,
        paths: list[Path],
        entries: dict[str, Entry],
        tokenizer_source: TokenizerSource,
    ) -> None:
        self.config = config
        self.tokenizer_source = tokenizer_source
        self._opened = {path: _stamp(path) for path in paths}
        self.file_bytes = sum(size for size, _ in self._opened.values())
        self._entries = entries
        self._maps = [_map(path) for path in paths]
        self._views = [np.frombuffer(opened, np.uint8) for opened in self._maps]

    @property
    def paths(self) -> list[Path]:
        """The files that hold the tensors."""
        return list(self._opened)

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def names(self) -> Iterator[str]:
        """Every tensor of the network, in the order of the network; an expert is a tensor."""
        return iter(self._entries)

    def tensor(self, name: str) -> Tensor:
        """A view of one tensor; KeyError for a name that the network does not have."""
        shape, fmt, data, scale = self._entries[name]
        rows = self._bytes(data).reshape(*shape[:-1], fmt.row_bytes(shape[-1]))
        scales = None
        if scale is not None:
            scales = self._bytes(scale).reshape(scale_shape(fmt, shape) or ())
        return Tensor(name, shape, fmt, rows, scales)

    def experts(self, layer: int, part: str) -> list[Tensor]:
        """The routed experts' `part` ("w1" gate, "w2" down, "w3" up) of a layer, by expert."""
        return [
            self.tensor(expert_name(layer, expert, part))
            for expert in range(self.config.n_routed_experts)
        ]

    def release(self, name: str) -> None:
        """Give back the memory that reading this tensor took; a later look reads the file again."""
        _, _, data, scale = self._entries[name]
        for region in (data, scale):
            if region is not None and region.nbytes:
                start = region.offset // mmap.PAGESIZE * mmap.PAGESIZE
                stop = region.offset + region.nbytes
                self._maps[region.file].madvise(mmap.MADV_DONTNEED, start, stop - start)

    def check_unchanged(self) -> None:
        """Raise ModelFileError if a file is not as it was opened: reading a map past the end of a
        file that was cut short kills the process."""
        for path, opened in self._opened.items():
            try:
                unchanged = _stamp(path) == opened
            except OSError:
                unchanged = False
            if not unchanged:
                raise ModelFileError(
                    "MODEL_CHANGED",
                    f"{path} was changed or removed after it was opened.",
                    "start the daemon again once the file is whole; leave a served model alone",
                )

    def close(self) -> None:
        """Let go of the files; tensors that are still held keep their own file mapped."""
        self._views.clear()
        self._maps.clear()
        self._entries = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _bytes(self, region: Region) -> Bytes:
        return self._views[region.file][region.offset : region.offset + region.nbytes]


def open_model(path: Path) -> ModelFiles:
    """Open a released checkpoint's folder or a .gguf file: headers only, all checked.

    Raises ModelFileError for anything that is missing, damaged, or not this network.
    """
    try:
        if path.is_dir():
            config, paths, entries = read_release(path)
            tokenizer = path / "tokenizer.json"
            return ModelFiles(config, paths, entries, tokenizer if tokenizer.is_file() else None)
        if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe would wait for its writer
            raise ModelFileError(
                "MODEL_NOT_A_MODEL",
                f"{path} is neither a file nor a folder.",
                "name a .gguf file or a folder of config.json and *.safetensors",
            )
        config, entries, metadata = read_gguf(path)
        return ModelFiles(config, [path], entries, metadata)
    except FileNotFoundError:
        raise ModelFileError(
            "MODEL_NOT_FOUND",
            f"There is no model at {path}.",
            "name a .gguf file or a folder of config.json and *.safetensors",
        ) from None
    except OSError as error:
        raise ModelFileError(
            "MODEL_UNREADABLE",
            f"{path} cannot be read: {error.strerror}.",
            "check the file and its permissions",
        ) from error


def _stamp(path: Path) -> tuple[int, int]:
    """Size and time of change: what tells a file that was written since."""
    found = path.stat()
    return found.st_size, found.st_mtime_ns


def _map(path: Path) -> mmap.mmap:
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
