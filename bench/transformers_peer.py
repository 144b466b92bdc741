"""The same network in transformers: the peer that benches and fixtures compare with.

Knows how the released tensor names map to those of `DeepseekV4ForCausalLM` and builds that model
from any model that ds4 can open, with float32 weights.  Needs the `bench` extra.
"""

from collections.abc import Callable, Iterator, Mapping

import numpy as np
import torch
from ds4_daemon.model.config import CSA_RATIO, ModelConfig
from ds4_daemon.model.files import ModelFiles
from ds4_daemon.model.layout import expert_name
from ds4_daemon.model.quant import dequantize, integers
from ds4_daemon.model.tensor import Format
from transformers import DeepseekV4Config, DeepseekV4ForCausalLM

Read = Callable[[str], np.ndarray]

_TOP = {
    "embed.weight": "model.embed_tokens.weight",
    "norm.weight": "model.norm.weight",
    "head.weight": "lm_head.weight",
    "hc_head_fn": "model.hc_head.hc_fn",
    "hc_head_base": "model.hc_head.hc_base",
    "hc_head_scale": "model.hc_head.hc_scale",
}
_LAYER = {
    "attn_norm.weight": "input_layernorm.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
    "attn.wq_a.weight": "self_attn.q_a_proj.weight",
    "attn.q_norm.weight": "self_attn.q_a_norm.weight",
    "attn.wq_b.weight": "self_attn.q_b_proj.weight",
    "attn.wkv.weight": "self_attn.kv_proj.weight",
    "attn.kv_norm.weight": "self_attn.kv_norm.weight",
    "attn.attn_sink": "self_attn.sinks",
    "attn.wo_a.weight": "self_attn.o_a_proj.weight",
    "attn.wo_b.weight": "self_attn.o_b_proj.weight",
    "ffn.gate.weight": "mlp.gate.weight",
    "ffn.shared_experts.w1.weight": "mlp.shared_experts.gate_proj.weight",
    "ffn.shared_experts.w2.weight": "mlp.shared_experts.down_proj.weight",
    "ffn.shared_experts.w3.weight": "mlp.shared_experts.up_proj.weight",
    **{
        f"hc_{part}_{piece}": f"{part}_hc.{piece}"
        for part in ("attn", "ffn")
        for piece in ("fn", "base", "scale")
    },
}
_COMPRESSOR = {
    "ape": "position_bias",
    "wkv.weight": "kv_proj.weight",
    "wgate.weight": "gate_proj.weight",
    "norm.weight": "kv_norm.weight",
}
_INDEXER = {
    "attn.indexer.wq_b.weight": "self_attn.compressor.indexer.q_b_proj.weight",
    "attn.indexer.weights_proj.weight": "self_attn.compressor.indexer.scorer.weights_proj.weight",
}


# Fields of both configurations.
_SAME = (
    "vocab_size",
    "hidden_size",
    "moe_intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "head_dim",
    "q_lora_rank",
    "o_groups",
    "o_lora_rank",
    "n_routed_experts",
    "n_shared_experts",
    "num_experts_per_tok",
    "routed_scaling_factor",
    "swiglu_limit",
    "sliding_window",
    "index_n_heads",
    "index_head_dim",
    "index_topk",
    "hc_mult",
    "hc_sinkhorn_iters",
    "hc_eps",
    "rms_norm_eps",
    "max_position_embeddings",
    "rope_theta",
    "compress_rope_theta",
)


def peer_config(c: ModelConfig) -> DeepseekV4Config:
    """The configuration of the peer; raises ValueError where it cannot express ours."""
    kinds = {0: "sliding_attention", CSA_RATIO: "compressed_sparse_attention"}
    hca = {r for r in c.compress_ratios if r not in kinds}
    if len(hca) > 1:
        raise ValueError("transformers knows one ratio for all HCA layers")
    names = [kinds.get(r, "heavily_compressed_attention") for r in c.compress_ratios]
    same = {name: getattr(c, name) for name in _SAME}
    yarn = c.rope_scaling
    return DeepseekV4Config(
        **same,
        num_key_value_heads=1,
        partial_rotary_factor=c.qk_rope_head_dim / c.head_dim,
        layer_types=names,
        mlp_layer_types=[
            "hash_moe" if i < c.num_hash_layers else "moe" for i in range(c.num_hidden_layers)
        ],
        compress_rates={
            "compressed_sparse_attention": CSA_RATIO,
            "heavily_compressed_attention": min(hca, default=128),
        },
        rope_parameters={
            "rope_type": "yarn",
            "factor": yarn.factor,
            "beta_fast": yarn.beta_fast,
            "beta_slow": yarn.beta_slow,
            "original_max_position_embeddings": yarn.original_max_position_embeddings,
        },
        scoring_func="sqrtsoftplus",
        norm_topk_prob=True,
        num_nextn_predict_layers=0,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=None,
        tie_word_embeddings=False,
        attn_implementation="eager",
        experts_implementation="eager",
    )


def peer_names(c: ModelConfig) -> Iterator[tuple[str, str]]:
    """(released name, name in the peer) of every tensor but the routed experts' stacks."""
    yield from _TOP.items()
    for i, ratio in enumerate(c.compress_ratios):
        names = dict(_LAYER)
        if i < c.num_hash_layers:
            names["ffn.gate.tid2eid"] = "mlp.gate.tid2eid"
        else:
            names["ffn.gate.bias"] = "mlp.gate.e_score_correction_bias"
        if ratio:
            for ours, theirs in _COMPRESSOR.items():
                names[f"attn.compressor.{ours}"] = f"self_attn.compressor.{theirs}"
                if ratio == CSA_RATIO:
                    inner = f"self_attn.compressor.indexer.{theirs}"
                    names[f"attn.indexer.compressor.{ours}"] = inner
        if ratio == CSA_RATIO:
            names |= _INDEXER
        for ours, theirs in names.items():
            yield f"layers.{i}.{ours}", f"model.layers.{i}.{theirs}"


def reader(files: ModelFiles) -> Read:
    """Reads an opened model's tensors for `peer_tensors`, whatever they are stored as."""

    def read(name: str) -> np.ndarray:
        tensor = files.tensor(name)
        wide = tensor.format in (Format.I32, Format.I64)
        return integers(tensor).astype(np.int64) if wide else dequantize(tensor)

    return read


def peer_tensors(c: ModelConfig, read: Read) -> Iterator[tuple[str, torch.Tensor]]:
    """The peer's state dict, from `read(released name)` → float32 (`tid2eid`: integers)."""

    def tensor(name: str) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(read(name)))

    def stack(layer: int, part: str) -> torch.Tensor:
        names = (expert_name(layer, e, part) for e in range(c.n_routed_experts))
        return torch.stack([tensor(name) for name in names])

    for ours, theirs in peer_names(c):
        yield theirs, tensor(ours)
    for i in range(c.num_hidden_layers):
        experts = f"model.layers.{i}.mlp.experts"
        yield f"{experts}.gate_up_proj", torch.cat([stack(i, "w1"), stack(i, "w3")], dim=1)
        yield f"{experts}.down_proj", stack(i, "w2")


def released_tensors(
    c: ModelConfig, state: Mapping[str, torch.Tensor]
) -> Iterator[tuple[str, torch.Tensor]]:
    """`peer_tensors` backwards: released names from the peer's state dict."""
    for ours, theirs in peer_names(c):
        yield ours, state[theirs]
    for i in range(c.num_hidden_layers):
        experts = f"model.layers.{i}.mlp.experts"
        gate, up = state[f"{experts}.gate_up_proj"].chunk(2, dim=1)
        for part, stack in (("w1", gate), ("w2", state[f"{experts}.down_proj"]), ("w3", up)):
            for e in range(c.n_routed_experts):
                yield expert_name(i, e, part), stack[e]


def peer_model(c: ModelConfig, read: Read) -> DeepseekV4ForCausalLM:
    """The peer with these weights, float32, eager, ready for inference."""
    model = DeepseekV4ForCausalLM(peer_config(c)).eval()
    model.load_state_dict(dict(peer_tensors(c, read)))  # strict: every tensor, no other
    return model
