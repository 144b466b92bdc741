"""A model of a few hundred kilobytes in either layout, to be spoiled in one place at a time."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from ds4_daemon.model import layout
from ds4_daemon.model.config import ModelConfig
from ds4_daemon.model.gguf_file import gguf_name
from safetensors.numpy import save_file

Arrays = dict[str, np.ndarray]

CONFIG: dict[str, Any] = {
    "model_type": "deepseek_v4",
    "vocab_size": 96,
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "qk_rope_head_dim": 8,
    "q_lora_rank": 32,
    "o_lora_rank": 16,
    "o_groups": 2,
    "sliding_window": 16,
    "max_position_embeddings": 4096,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "moe_intermediate_size": 32,
    "routed_scaling_factor": 1.5,
    "swiglu_limit": 10.0,
    "num_hash_layers": 1,
    "index_n_heads": 4,
    "index_head_dim": 16,
    "index_topk": 8,
    "rms_norm_eps": 1e-6,
    "hc_mult": 4,
    "hc_sinkhorn_iters": 20,
    "hc_eps": 1e-6,
    "rope_theta": 10000,
    "compress_rope_theta": 160000,
    "rope_scaling": {
        "type": "yarn",
        "factor": 16,
        "original_max_position_embeddings": 256,
        "beta_fast": 32,
        "beta_slow": 1,
    },
    "compress_ratios": [0, 4, 32, 4, 0],
}

# GGUF metadata that says the same, written out so that the reader's table has a second opinion.
METADATA: dict[str, Any] = {
    "block_count": 4,
    "context_length": 4096,
    "embedding_length": 32,
    "vocab_size": 96,
    "attention.head_count": 4,
    "attention.head_count_kv": 1,
    "attention.key_length": 32,
    "attention.value_length": 32,
    "attention.q_lora_rank": 32,
    "attention.output_lora_rank": 16,
    "attention.output_group_count": 2,
    "attention.sliding_window": 16,
    "attention.layer_norm_rms_epsilon": 1e-6,
    "attention.compress_ratios": [0, 4, 32, 4, 0],
    "attention.compress_rope_freq_base": 160000.0,
    "attention.indexer.head_count": 4,
    "attention.indexer.key_length": 16,
    "attention.indexer.top_k": 8,
    "rope.dimension_count": 8,
    "rope.freq_base": 10000.0,
    "rope.scaling.type": "yarn",
    "rope.scaling.factor": 16.0,
    "rope.scaling.original_context_length": 256,
    "rope.scaling.yarn_beta_fast": 32.0,
    "rope.scaling.yarn_beta_slow": 1.0,
    "expert_count": 4,
    "expert_used_count": 2,
    "expert_shared_count": 1,
    "expert_feed_forward_length": 32,
    "expert_weights_scale": 1.5,
    "expert_weights_norm": True,
    "expert_gating_func": 4,
    "swiglu_clamp_exp": [10.0] * 4,
    "hash_layer_count": 1,
    "hyper_connection.count": 4,
    "hyper_connection.sinkhorn_iterations": 20,
    "hyper_connection.epsilon": 1e-6,
    "nextn_predict_layers": 1,
}


def arrays(seed: int = 0) -> Arrays:
    """Every tensor of the network under its released name: float32, and int64 tables."""
    rng = np.random.default_rng(seed)
    made: Arrays = {}
    for name, shape in layout.tensors(ModelConfig.from_config_json(CONFIG)):
        if name.endswith("tid2eid"):
            made[name] = rng.integers(0, 4, shape)
        else:
            made[name] = rng.standard_normal(shape).astype(np.float32)
    return made


def write_release(folder: Path, config: dict[str, Any], tensors: Arrays) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors")
    return folder


def write_gguf(
    path: Path,
    metadata: dict[str, Any],
    tensors: Arrays,
    architecture: str = "deepseek4",
    edit: Callable[[gguf.GGUFWriter], None] | None = None,
) -> Path:
    """Tensors by released name, experts stacked as GGUF has them; `edit` adds what it likes."""
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in metadata.items():
        add(writer, f"deepseek4.{key}", value)
    stacks: dict[str, list[np.ndarray]] = {}
    for name, values in tensors.items():
        stacks.setdefault(gguf_name(name), []).append(values)
    for name, parts in stacks.items():
        values = np.stack(parts) if "_exps" in name else parts[0]
        writer.add_tensor(name, values.astype(np.int32) if "tid2eid" in name else values)
    if edit:
        edit(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    match value:
        case bool():
            writer.add_bool(key, value)
        case int():
            writer.add_uint32(key, value)
        case float():
            writer.add_float32(key, value)
        case str():
            writer.add_string(key, value)
        case _:
            writer.add_array(key, value)


def header_of(path: Path) -> dict[str, Any]:
    """The JSON header of a safetensors file."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header: dict[str, Any] = json.loads(data[8 : 8 + length])
    return header


def put_header(path: Path, header: dict[str, Any]) -> None:
    """Replace a safetensors file's header, leaving its data."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])
