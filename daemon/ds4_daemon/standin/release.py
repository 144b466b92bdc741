"""Writes models in the layout of the released checkpoint: safetensors, FP8 and FP4.

Owns which tensor gets which type, the two roundings (FP8 in 128 x 128 tiles, FP4 in groups of 32)
and the safetensors container. `write_checkpoint` takes anyone's data, tensor by tensor;
`write_release` writes the stand-in's, as `drawing` gives it. Called by `standin.make`.
"""

import dataclasses
import json
import shutil
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ds4_daemon.model import layout
from ds4_daemon.model.config import ModelConfig
from ds4_daemon.model.quant import codes
from ds4_daemon.model.tensor import Bytes, Format, scale_shape
from ds4_daemon.standin import drawing

Floats = npt.NDArray[np.float32]
Named = tuple[str, layout.Shape]
Piece = npt.NDArray[Any]  # contiguous
# (released name, shape, format) -> the bytes of the tensor, then those of its scales if it has any
Data = Callable[[str, layout.Shape, Format], Iterable[Piece]]

# Which matrices the release keeps in FP8; its routed experts are FP4, the rest is not quantized.
_FP8 = (".wq_a.weight", ".wq_b.weight", ".wkv.weight", ".wo_a.weight", ".wo_b.weight")
_DTYPES = {
    Format.FP8: "F8_E4M3",
    Format.FP4: "I8",  # two codes a byte
    Format.BF16: "BF16",
    Format.F32: "F32",
    Format.I64: "I64",
}
FP8_MOST = 448
_SHARDS = 2  # so that the index is used


class Entry(NamedTuple):
    """A tensor as the header of a safetensors file lists it."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int


def write_release(folder: Path, tokenizer: Path, seed: int) -> None:
    """The whole stand-in in two weight files, into an existing folder."""
    listed = list(layout.tensors(drawing.GEOMETRY))
    shards: list[list[Named]] = [[] for _ in range(_SHARDS)]
    for number, tensor in enumerate(listed):
        shards[number * _SHARDS // len(listed)].append(tensor)

    def data(name: str, shape: layout.Shape, fmt: Format) -> Iterable[Piece]:
        return _data(name, shape, fmt, seed)

    comment = f"ds4's stand-in model: random weights of seed {seed}, its text is noise"
    write_checkpoint(folder, drawing.GEOMETRY, tokenizer, comment, shards, data)


def write_checkpoint(
    folder: Path,
    config: ModelConfig,
    tokenizer: Path,
    comment: str,
    shards: Sequence[Sequence[Named]],
    data: Data,
) -> None:
    """config.json, tokenizer.json, weight files and their index into an existing folder.

    `shards` are the network's tensors, file by file; no more is held of them than `data` yields.
    """
    weight_map = {}
    total = 0
    for number, shard in enumerate(shards, 1):
        file_name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        entries = [entry for name, shape in shard for entry in stored_as(name, shape)]
        with (folder / file_name).open("wb") as file:
            file.write(_header(entries))
            for name, shape in shard:
                for piece in data(name, shape, storage(name)):
                    file.write(piece.data)
        weight_map.update({entry.name: file_name for entry in entries})
        total += sum(entry.nbytes for entry in entries)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))
    (folder / "config.json").write_text(json.dumps(_config_json(config, comment), indent=1))
    shutil.copyfile(tokenizer, folder / "tokenizer.json")


def storage(name: str) -> Format:
    """The format of a tensor in the release."""
    if name.endswith("tid2eid"):
        return Format.I64
    if ".ffn.experts." in name:
        return Format.FP4
    compressor = ".compressor." in name  # its wkv is not FP8
    if ".shared_experts." in name or (name.endswith(_FP8) and not compressor):
        return Format.FP8
    return Format.BF16 if name.endswith(".weight") else Format.F32


def stored_as(name: str, shape: layout.Shape) -> Iterator[Entry]:
    """What a file lists for one tensor of the network: itself, and its scales if apart."""
    fmt = storage(name)
    nbytes = prod(shape[:-1]) * fmt.row_bytes(shape[-1])
    packed = (*shape[:-1], shape[-1] // 2) if fmt is Format.FP4 else shape
    yield Entry(name, _DTYPES[fmt], packed, nbytes)
    scale = scale_shape(fmt, shape)
    if scale is not None:
        yield Entry(name.removesuffix(".weight") + ".scale", "F8_E8M0", scale, prod(scale))


def _data(name: str, shape: layout.Shape, fmt: Format, seed: int) -> Iterable[Piece]:
    if fmt is Format.I64:
        experts = drawing.GEOMETRY.n_routed_experts
        return (drawing.draw_tid2eid(name, (shape[0], shape[1]), experts, seed),)
    if fmt is Format.FP4:
        return to_fp4(drawing.expert_values(name, (shape[0], shape[1]), seed))
    values = drawing.draw(name, shape, seed)
    if fmt is Format.FP8:
        return to_fp8(values)
    return (to_bf16(values) if fmt is Format.BF16 else values,)


def to_bf16(values: Floats) -> npt.NDArray[np.uint16]:
    """The bits of values that are exact in bfloat16."""
    return (values.view(np.uint32) >> 16).astype(np.uint16)


def to_fp8(values: Floats) -> tuple[Bytes, Bytes]:
    """(out, in), whole tiles -> e4m3 codes (out, in) and e8m0 scales (out/128, in/128)."""
    rows, columns = values.shape
    tiles = values.reshape(rows // 128, 128, columns // 128, 128)
    exponent = exponent_under(np.abs(tiles).max(axis=(1, 3)), FP8_MOST)
    packed = e4m3_codes(np.ldexp(tiles, -exponent[:, None, :, None]))
    return packed.reshape(rows, columns), (exponent + 127).astype(np.uint8)


def to_fp4(values: Floats) -> tuple[Bytes, Bytes]:
    """(out, in), in a multiple of 32 -> code pairs (out, in/2) and e8m0 scales (out, in/32)."""
    rows, columns = values.shape
    groups = values.reshape(rows, columns // 32, 32)
    exponent = exponent_under(np.abs(groups).max(axis=-1), 6)
    scaled = np.ldexp(groups, -exponent[:, :, None])
    sign = np.where(np.signbit(scaled), np.uint8(8), np.uint8(0))
    code = (_nearest(scaled, codes.e2m1()[:8]) | sign).reshape(rows, columns)
    return code[:, 0::2] | code[:, 1::2] << np.uint8(4), (exponent + 127).astype(np.uint8)


def e4m3_codes(scaled: Floats) -> Bytes:
    """The nearest FP8 code of each value; none is above FP8_MOST in magnitude."""
    packed = _nearest(scaled, codes.e4m3()[:127])  # 127 is NaN
    packed |= np.signbit(scaled).view(np.uint8) << np.uint8(7)
    return packed


def exponent_under(largest: Floats, limit: int) -> npt.NDArray[np.int32]:
    """The power of two by which `largest` just fits under `limit`; 2^-126 for zeros."""
    return np.ceil(np.log2(np.maximum(largest, 2.0**-120) / limit)).astype(np.int32)


def _nearest(values: Floats, levels: Floats) -> Bytes:
    """Index of the level next to each magnitude; `levels` ascend from 0."""
    midpoints = (levels[1:] + levels[:-1]) / 2
    return np.searchsorted(midpoints, np.abs(values)).astype(np.uint8)


def _header(entries: Iterable[Entry]) -> bytes:
    listed: dict[str, Any] = {}
    at = 0
    for name, dtype, shape, nbytes in entries:
        offsets = [at, at + nbytes]
        listed[name] = {"dtype": dtype, "shape": shape, "data_offsets": offsets}
        at += nbytes
    text = json.dumps(listed).encode()
    text += b" " * (-len(text) % 8)  # the format wants data on a multiple of 8
    return struct.pack("<Q", len(text)) + text


def _config_json(config: ModelConfig, comment: str) -> dict[str, Any]:
    sizes = dataclasses.asdict(config)
    sizes["compress_ratios"] += (0,) * config.draft_stages
    del sizes["clamp_shared_expert"], sizes["draft_stages"]
    return {
        "_comment": comment,
        "architectures": ["DeepseekV4ForCausalLM"],
        "model_type": "deepseek_v4",
        **sizes,
        "rope_scaling": {"type": "yarn", **sizes["rope_scaling"]},
        "num_key_value_heads": 1,
        "num_nextn_predict_layers": 0,
        "scoring_func": "sqrtsoftplus",
        "topk_method": "noaux_tc",
        "norm_topk_prob": True,
        "hidden_act": "silu",
        "attention_bias": False,
        "tie_word_embeddings": False,
        "expert_dtype": "fp4",
        "quantization_config": {
            "quant_method": "fp8",
            "fmt": "e4m3",
            "scale_fmt": "ue8m0",
            "weight_block_size": [128, 128],
            "activation_scheme": "dynamic",
        },
        "bos_token_id": 0,
        "eos_token_id": 1,
        "torch_dtype": "bfloat16",
    }
