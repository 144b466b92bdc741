"""A released checkpoint of true shapes whose weights are all zero: a sparse file of any size."""

import json
import struct
from collections.abc import Iterator
from dataclasses import replace
from math import prod
from pathlib import Path

from ds4_daemon.model.config import ModelConfig
from ds4_daemon.model.layout import tensors

from tests.model.random_models import CONFIGS, released_config

Stored = tuple[str, str, tuple[int, ...], int]  # name, type, shape, bytes

_FP8 = ("wq_a", "wq_b", "wkv", "wo_a", "wo_b", "w1", "w2", "w3")
_F32 = ("_fn", "_base", "_scale", ".ape", "attn_sink", "gate.bias")

# Three layers of the full-size model, one of each kind, with an eighth of its experts.
CONFIG: ModelConfig = replace(
    CONFIGS["true-heads"],
    vocab_size=1024,
    hidden_size=4096,
    num_hidden_layers=3,
    num_attention_heads=64,
    q_lora_rank=1024,
    o_lora_rank=1024,
    o_groups=8,
    n_routed_experts=32,
    num_experts_per_tok=6,
    moe_intermediate_size=2048,
    num_hash_layers=0,
    index_n_heads=64,
    index_topk=512,
    compress_ratios=(0, 4, 128),
)


def _stored(name: str, shape: tuple[int, ...]) -> Iterator[Stored]:
    base = name.removesuffix(".weight")
    if ".experts." in name:
        rows, columns = shape
        yield name, "I8", (rows, columns // 2), rows * columns // 2
        yield f"{base}.scale", "F8_E8M0", (rows, columns // 32), rows * columns // 32
    elif base.endswith(_FP8) and ".compressor." not in name:
        rows, columns = shape
        yield name, "F8_E4M3", shape, rows * columns
        tiles = (rows // 128, columns // 128)
        yield f"{base}.scale", "F8_E8M0", tiles, prod(tiles)
    elif name.endswith(_F32):
        yield name, "F32", shape, 4 * prod(shape)
    else:
        yield name, "BF16", shape, 2 * prod(shape)


def write_sparse_release(folder: Path, config: ModelConfig = CONFIG) -> Path:
    """Headers and a hole for the data; returns the safetensors file."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(released_config(config)))
    header, at = {}, 0
    for logical in tensors(config):
        for name, dtype, shape, size in _stored(*logical):
            header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + size]}
            at += size
    text = json.dumps(header).encode()
    path = folder / "model.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + at)
    return path
