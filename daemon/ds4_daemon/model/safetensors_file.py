"""Reads the headers of a released checkpoint: a folder of config.json and *.safetensors.

Owns the safetensors header, the shard index, and which stored types make which format (FP8 and
FP4 weights come with a second tensor of scales). Reads no tensor data. Called by `files` only.
"""

import json
import struct
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

from ds4_daemon.errors import ModelFileError
from ds4_daemon.model import layout
from ds4_daemon.model.config import ModelConfig
from ds4_daemon.model.layout import Entry, Region
from ds4_daemon.model.tensor import Format, scale_shape

_PLAIN = {
    "F32": Format.F32,
    "F16": Format.F16,
    "BF16": Format.BF16,
    "I32": Format.I32,
    "I64": Format.I64,
}
_SCALED = {"F8_E4M3": Format.FP8, "I8": Format.FP4}  # two FP4 codes lie in one int8
_SCALE_TYPE = "F8_E8M0"
# The release's largest header is under 1 MB; the library's own readers stop at 100 MB as well.
_HEADER_LIMIT_BYTES = 100_000_000


class _Stored(NamedTuple):
    dtype: str
    shape: tuple[int, ...]
    region: Region


def read_release(folder: Path) -> tuple[ModelConfig, list[Path], dict[str, Entry]]:
    """Configuration, files and entries of the network's tensors; raises ModelFileError."""
    config = ModelConfig.from_config_json(_read_json(folder / "config.json"))
    shards = _shards(folder)
    stored: dict[str, _Stored] = {}
    for number, path in enumerate(shards):
        stored.update(_read_header(path, number))
    entries: dict[str, Entry] = {}
    for name, _ in layout.tensors(config):
        if name in stored:
            entries[name] = _entry(name, stored, folder)
    layout.check(config, entries, str(folder))
    return config, shards, entries


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise ModelFileError(
            "MODEL_NOT_A_MODEL",
            f"{path.parent} has no {path.name}, so it is not a released checkpoint.",
            "name the folder that holds config.json and *.safetensors, or a .gguf file",
        ) from None
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise ModelFileError(
            "MODEL_CONFIG_INVALID", f"{path} is not a JSON object.", "fetch the file again"
        )
    return value


def _shards(folder: Path) -> list[Path]:
    """The weight files: those that the index names, or all of the folder if there is no index."""
    index = folder / "model.safetensors.index.json"
    if not index.exists():
        shards = sorted(folder.glob("*.safetensors"))
        if not shards:
            raise ModelFileError(
                "MODEL_WEIGHTS_MISSING",
                f"{folder} has a config.json but no *.safetensors.",
                "fetch the weights too, or name another folder",
            )
        return shards
    named = _read_json(index).get("weight_map")
    names = sorted(set(named.values())) if isinstance(named, dict) and named else []
    if not names or not all(isinstance(n, str) and Path(n).name == n for n in names):
        raise ModelFileError(
            "MODEL_HEADER_INVALID", f"{index} has no usable weight_map.", "fetch the file again"
        )
    absent = [name for name in names if not (folder / name).is_file()]
    if absent:
        raise ModelFileError(
            "MODEL_WEIGHTS_MISSING",
            f"{len(absent)} of {len(names)} weight files are not in {folder}, first {absent[0]}.",
            "fetch the missing files",
        )
    return [folder / name for name in names]


def _read_header(path: Path, number: int) -> dict[str, _Stored]:
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        if len(start) < 8:
            raise _truncated(path, f"it has {size} bytes")
        (length,) = struct.unpack("<Q", start)
        if length > _HEADER_LIMIT_BYTES:
            raise _invalid(path, "it does not begin with a header length")
        if 8 + length > size:
            raise _truncated(path, f"its header needs {8 + length:,} bytes, it has {size:,}")
        header = file.read(length)
    try:
        listed = json.loads(header)
        listed.pop("__metadata__", None)
        return {
            name: _stored(info, number, 8 + length, size, path) for name, info in listed.items()
        }
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise _invalid(path, "its header cannot be read") from None


def _stored(info: dict[str, Any], number: int, base: int, size: int, path: Path) -> _Stored:
    begin, end = info["data_offsets"]
    shape = tuple(info["shape"])
    if not all(type(n) is int and n >= 0 for n in (begin, end, *shape)) or begin > end:
        raise ValueError
    if base + end > size:
        raise _truncated(path, f"its header promises {base + end:,} bytes, it has {size:,}")
    return _Stored(str(info["dtype"]), shape, Region(number, base + begin, end - begin))


def _entry(name: str, stored: dict[str, _Stored], folder: Path) -> Entry:
    dtype, shape, region = stored[name]
    fmt = _PLAIN.get(dtype) or _SCALED.get(dtype)
    if fmt is None:
        raise ModelFileError(
            "MODEL_TENSOR_TYPE",
            f"{name} in {folder} has type {dtype}, which is not one of this release's.",
            "fetch DeepSeek's own release, or a GGUF of it",
        )
    if dtype in _SCALED and len(shape) != 2:
        raise _unfit(name, folder, region)
    if fmt is Format.FP4:
        shape = (*shape[:-1], 2 * shape[-1])
    scale = None
    if dtype in _SCALED:
        scale = _scale(name, fmt, shape, stored, folder)
    if region.nbytes != prod(shape[:-1]) * fmt.row_bytes(shape[-1] if shape else 1):
        raise _unfit(name, folder, region)
    return Entry(shape, fmt, region, scale)


def _scale(
    name: str, fmt: Format, shape: tuple[int, ...], stored: dict[str, _Stored], folder: Path
) -> Region:
    scale_name = name.removesuffix(".weight") + ".scale"
    scale = stored.get(scale_name)
    if scale is None:
        raise ModelFileError(
            "MODEL_TENSOR_MISSING",
            f"{folder} has no tensor {scale_name}, without which {name} means nothing.",
            "the model files are incomplete; fetch them again",
        )
    wanted = scale_shape(fmt, shape) if len(shape) == 2 else None
    if scale.dtype != _SCALE_TYPE or scale.shape != wanted:
        raise ModelFileError(
            "MODEL_TENSOR_SHAPE",
            f"{scale_name} in {folder} is {scale.dtype} {list(scale.shape)}, not {_SCALE_TYPE} "
            f"{list(wanted or ())}.",
            "the file was not written for DeepSeek V4; fetch it again",
        )
    if scale.region.nbytes != prod(scale.shape):
        raise _unfit(scale_name, folder, scale.region)
    return scale.region


def _unfit(name: str, folder: Path, region: Region) -> ModelFileError:
    return ModelFileError(
        "MODEL_HEADER_INVALID",
        f"{name} in {folder} has {region.nbytes:,} bytes, which does not fit its shape.",
        "the file is damaged; fetch it again",
    )


def _truncated(path: Path, detail: str) -> ModelFileError:
    return ModelFileError(
        "MODEL_TRUNCATED", f"{path} is cut short: {detail}.", "fetch the file again"
    )


def _invalid(path: Path, detail: str) -> ModelFileError:
    return ModelFileError(
        "MODEL_HEADER_INVALID", f"{path} is not a safetensors file: {detail}.",
        "fetch the file again; a text file here is often a Git LFS pointer",
    )  # fmt: skip
