"""Writes GGUF files with the types of the published 2-bit file of DeepSeek V4 Flash.

Owns which tensor gets which ggml type and the metadata under that file's names. `write_model` takes
anyone's tensors (models/nano/quantize.py writes the trained model with it), `write_header` all but
the data, for a writer of more than memory holds; `write_gguf` writes the stand-in's, which it knows
only as `drawing` gives them. Called by `standin.make`.
"""

import json
from collections.abc import Iterable, Iterator
from math import prod
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType as Type

from ds4_daemon.model import layout
from ds4_daemon.model.config import GGUF_ARCHITECTURE, ModelConfig
from ds4_daemon.model.gguf_file import gguf_name
from ds4_daemon.standin import drawing

Stored = tuple[str, npt.NDArray[Any], Type]
Listed = tuple[str, tuple[int, ...], Type]  # name, shape with the row length last

_Q8_0 = ("head.weight", ".wq_a.weight", "attn.wq_b.weight", "attn.wkv.weight", ".wo_a.weight",
         ".wo_b.weight")  # fmt: skip
_CONTROL, _USER_DEFINED, _NORMAL = 3, 4, 1  # llama.cpp's token types
_GATING_SQRT_SOFTPLUS = 4


def write_gguf(path: Path, tokenizer: Path, seed: int) -> None:
    """The whole stand-in in one file."""
    title = f"ds4 stand-in: random weights of seed {seed}, its text is noise"
    write_model(path, drawing.GEOMETRY, tokenizer, title, _tensors(seed))


def write_model(
    path: Path, config: ModelConfig, tokenizer: Path, title: str, tensors: Iterable[Stored]
) -> None:
    """Any model in one file: `tensors` are (GGUF name, values or blocks, ggml type)."""
    stored = list(tensors)
    listed = [(name, _shape(data, kind), kind) for name, data, kind in stored]
    write_header(path, config, tokenizer, title, listed)
    with path.open("ab") as file:
        for _, data, _ in stored:
            file.write(np.ascontiguousarray(data).data)
            file.write(padding(data.nbytes))


def write_header(
    path: Path, config: ModelConfig, tokenizer: Path, title: str, listed: Iterable[Listed]
) -> None:
    """The file up to its data, which is to be appended: each tensor's, then its `padding`."""
    writer = gguf.GGUFWriter(path, GGUF_ARCHITECTURE)
    writer.add_name(title)
    _add_config(writer, config)
    _add_tokenizer(writer, json.loads(tokenizer.read_text("utf-8")))
    for name, shape, kind in listed:
        block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
        nbytes = prod(shape) // block * block_bytes
        # Any type but uint8 makes the writer take the shape as it is.
        writer.add_tensor_info(name, shape, np.dtype(np.float32), nbytes, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    with path.open("ab") as file:
        file.write(padding(file.tell()))


def padding(nbytes: int) -> bytes:
    """What follows `nbytes` so that the next tensor begins where the format wants it."""
    return bytes(-nbytes % gguf.GGUF_DEFAULT_ALIGNMENT)


def _shape(data: npt.NDArray[Any], kind: Type) -> tuple[int, ...]:
    if data.dtype != np.uint8:
        return data.shape
    return tuple(gguf.quant_shape_from_byte_shape(data.shape, kind))


def _tensors(seed: int) -> Iterator[Stored]:
    stacks: dict[str, list[Any]] = {}
    for name, shape in layout.tensors(drawing.GEOMETRY):
        if ".ffn.experts." in name:
            fmt, blocks = drawing.draw_expert(name, (shape[0], shape[1]), seed)
            stack = stacks.setdefault(gguf_name(name), [])
            stack.append(blocks)
            if len(stack) == drawing.GEOMETRY.n_routed_experts:
                yield gguf_name(name), np.stack(stack), Type[fmt.label]
        elif name.endswith("tid2eid"):
            table = drawing.draw_tid2eid(
                name, (shape[0], shape[1]), drawing.GEOMETRY.n_routed_experts, seed
            )
            yield gguf_name(name), table.astype(np.int32), Type.I32
        else:
            kind = storage(name, shape)
            values = drawing.draw(name, shape, seed)
            yield gguf_name(name), gguf.quants.quantize(values, kind), kind


def storage(name: str, shape: tuple[int, ...]) -> Type:
    """The ggml type of a float tensor, by its released name."""
    if ".ffn.experts." in name:
        return Type.Q2_K if ".w2." in name else Type.IQ2_XXS
    if len(shape) == 1:
        return Type.F32
    if ".shared_experts." in name or name.endswith(_Q8_0):
        return Type.Q8_0
    return Type.F16  # embedding, compressors, indexer, router, hyper-connections


def _add_config(writer: gguf.GGUFWriter, c: ModelConfig) -> None:
    whole = {
        "block_count": c.num_hidden_layers,
        "context_length": c.max_position_embeddings,
        "embedding_length": c.hidden_size,
        "vocab_size": c.vocab_size,
        "attention.head_count": c.num_attention_heads,
        "attention.head_count_kv": 1,
        "attention.key_length": c.head_dim,
        "attention.value_length": c.head_dim,
        "attention.q_lora_rank": c.q_lora_rank,
        "attention.output_lora_rank": c.o_lora_rank,
        "attention.output_group_count": c.o_groups,
        "attention.sliding_window": c.sliding_window,
        "attention.indexer.head_count": c.index_n_heads,
        "attention.indexer.key_length": c.index_head_dim,
        "attention.indexer.top_k": c.index_topk,
        "rope.dimension_count": c.qk_rope_head_dim,
        "rope.scaling.original_context_length": c.rope_scaling.original_max_position_embeddings,
        "expert_count": c.n_routed_experts,
        "expert_used_count": c.num_experts_per_tok,
        "expert_shared_count": c.n_shared_experts,
        "expert_feed_forward_length": c.moe_intermediate_size,
        "expert_gating_func": _GATING_SQRT_SOFTPLUS,
        "hash_layer_count": c.num_hash_layers,
        "hyper_connection.count": c.hc_mult,
        "hyper_connection.sinkhorn_iterations": c.hc_sinkhorn_iters,
        "nextn_predict_layers": 0,
    }
    real = {
        "attention.layer_norm_rms_epsilon": c.rms_norm_eps,
        "attention.compress_rope_freq_base": c.compress_rope_theta,
        "rope.freq_base": c.rope_theta,
        "rope.scaling.factor": c.rope_scaling.factor,
        "rope.scaling.yarn_beta_fast": c.rope_scaling.beta_fast,
        "rope.scaling.yarn_beta_slow": c.rope_scaling.beta_slow,
        "expert_weights_scale": c.routed_scaling_factor,
        "hyper_connection.epsilon": c.hc_eps,
    }
    for key, number in whole.items():
        writer.add_uint32(f"{GGUF_ARCHITECTURE}.{key}", number)
    for key, value in real.items():
        writer.add_float32(f"{GGUF_ARCHITECTURE}.{key}", value)
    writer.add_string(f"{GGUF_ARCHITECTURE}.rope.scaling.type", "yarn")
    writer.add_bool(f"{GGUF_ARCHITECTURE}.expert_weights_norm", True)
    # What follows the layers' belongs to the draft stages, which have no tensors in this file.
    ratios = [*c.compress_ratios, *[0] * c.draft_stages]
    writer.add_array(f"{GGUF_ARCHITECTURE}.attention.compress_ratios", ratios)
    limits = [c.swiglu_limit] * c.num_hidden_layers
    writer.add_array(f"{GGUF_ARCHITECTURE}.swiglu_clamp_exp", limits)


def _add_tokenizer(writer: gguf.GGUFWriter, tokenizer: dict[str, Any]) -> None:
    vocabulary: dict[str, int] = tokenizer["model"]["vocab"]
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    types = [_NORMAL] * len(tokens)
    for added in tokenizer["added_tokens"]:
        types[added["id"]] = _CONTROL if added["special"] else _USER_DEFINED
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("joyai-llm")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges([_merge(merge) for merge in tokenizer["model"]["merges"]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_pad_token_id(2)
    writer.add_add_bos_token(False)


def _merge(merge: str | list[str]) -> str:
    """Tokenizers write a merge as a pair or, the older way, as one text; GGUF knows the latter."""
    return merge if isinstance(merge, str) else " ".join(merge)
