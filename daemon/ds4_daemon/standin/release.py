"""Writes the stand-in in the layout of the released checkpoint: safetensors, FP8 and FP4.

Owns the two roundings (FP8 in 128 x 128 tiles, FP4 in groups of 32) and the safetensors container.
It knows the numbers only as `drawing` gives them. Called by `standin.make`.
"""

import dataclasses
import json
import shutil
import struct
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ds4_daemon.model import layout
from ds4_daemon.model.quant import codes
from ds4_daemon.model.tensor import Bytes
from ds4_daemon.standin import drawing

Floats = npt.NDArray[np.float32]

# Which matrices the release keeps in FP8; its routed experts are FP4, the rest is not quantized.
_FP8 = (".wq_a.weight", ".wq_b.weight", ".wkv.weight", ".wo_a.weight", ".wo_b.weight")
_SHARDS = 2  # so that the index is used


@dataclasses.dataclass(frozen=True, slots=True)
class _Stored:
    dtype: str
    shape: tuple[int, ...]
    data: bytes


def write_release(folder: Path, tokenizer: Path, seed: int) -> None:
    """config.json, tokenizer.json, two weight files and their index into an existing folder."""
    shards: list[dict[str, _Stored]] = [{} for _ in range(_SHARDS)]
    listed = list(layout.tensors(drawing.GEOMETRY))
    for number, (name, shape) in enumerate(listed):
        shards[number * _SHARDS // len(listed)].update(_store(name, shape, seed))
    weight_map = {}
    for number, shard in enumerate(shards, 1):
        file_name = f"model-{number:05}-of-{_SHARDS:05}.safetensors"
        _write_safetensors(folder / file_name, shard)
        weight_map.update(dict.fromkeys(shard, file_name))
    total = sum(len(stored.data) for shard in shards for stored in shard.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))
    (folder / "config.json").write_text(json.dumps(_config_json(seed), indent=1))
    shutil.copyfile(tokenizer, folder / "tokenizer.json")


def _store(name: str, shape: tuple[int, ...], seed: int) -> dict[str, _Stored]:
    if name.endswith("tid2eid"):
        table = drawing.draw_tid2eid(name, (shape[0], shape[1]), seed)
        return {name: _Stored("I64", shape, table.tobytes())}
    scale_name = name.removesuffix(".weight") + ".scale"
    if ".ffn.experts." in name:
        values = drawing.expert_values(name, (shape[0], shape[1]), seed)
        packed, scale = to_fp4(values)
        return {
            name: _Stored("I8", packed.shape, packed.tobytes()),
            scale_name: _Stored("F8_E8M0", scale.shape, scale.tobytes()),
        }
    values = drawing.draw(name, shape, seed)
    compressor = ".compressor." in name  # its wkv is not FP8
    if ".shared_experts." in name or (name.endswith(_FP8) and not compressor):
        packed, scale = to_fp8(values)
        return {
            name: _Stored("F8_E4M3", packed.shape, packed.tobytes()),
            scale_name: _Stored("F8_E8M0", scale.shape, scale.tobytes()),
        }
    if name.endswith(".weight"):
        return {
            name: _Stored("BF16", shape, (values.view(np.uint32) >> 16).astype("<u2").tobytes())
        }
    return {name: _Stored("F32", shape, values.tobytes())}


def to_fp8(values: Floats) -> tuple[Bytes, Bytes]:
    """(out, in), whole tiles -> e4m3 codes (out, in) and e8m0 scales (out/128, in/128)."""
    rows, columns = values.shape
    tiles = values.reshape(rows // 128, 128, columns // 128, 128)
    exponent = _exponent(np.abs(tiles).max(axis=(1, 3)), 448)
    scaled = np.ldexp(tiles, -exponent[:, None, :, None])
    packed = _nearest(scaled, codes.e4m3()[:127])  # 127 is NaN
    sign = np.where(np.signbit(scaled), np.uint8(128), np.uint8(0))
    return (packed | sign).reshape(rows, columns), (exponent + 127).astype(np.uint8)


def to_fp4(values: Floats) -> tuple[Bytes, Bytes]:
    """(out, in), in a multiple of 32 -> code pairs (out, in/2) and e8m0 scales (out, in/32)."""
    rows, columns = values.shape
    groups = values.reshape(rows, columns // 32, 32)
    exponent = _exponent(np.abs(groups).max(axis=-1), 6)
    scaled = np.ldexp(groups, -exponent[:, :, None])
    sign = np.where(np.signbit(scaled), np.uint8(8), np.uint8(0))
    code = (_nearest(scaled, codes.e2m1()[:8]) | sign).reshape(rows, columns)
    return code[:, 0::2] | code[:, 1::2] << np.uint8(4), (exponent + 127).astype(np.uint8)


def _exponent(largest: Floats, limit: int) -> npt.NDArray[np.int32]:
    """The power of two by which `largest` just fits under `limit`; 2^-126 for zeros."""
    return np.ceil(np.log2(np.maximum(largest, 2.0**-120) / limit)).astype(np.int32)


def _nearest(values: Floats, levels: Floats) -> Bytes:
    """Index of the level next to each magnitude; `levels` ascend from 0."""
    midpoints = (levels[1:] + levels[:-1]) / 2
    return np.searchsorted(midpoints, np.abs(values)).astype(np.uint8)


def _write_safetensors(path: Path, tensors: dict[str, _Stored]) -> None:
    header: dict[str, Any] = {}
    at = 0
    for name, stored in tensors.items():
        end = at + len(stored.data)
        offsets = [at, end]
        header[name] = {"dtype": stored.dtype, "shape": stored.shape, "data_offsets": offsets}
        at = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the format wants data on a multiple of 8
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for stored in tensors.values():
            file.write(stored.data)


def _config_json(seed: int) -> dict[str, Any]:
    sizes = dataclasses.asdict(drawing.GEOMETRY)
    del sizes["clamp_shared_expert"], sizes["draft_stages"]
    return {
        "_comment": f"ds4's stand-in model: random weights of seed {seed}, its text is noise",
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
