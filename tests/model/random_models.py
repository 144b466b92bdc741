"""Three small networks with random weights, made alike on every machine.

Weights come from the uniform integers of a frozen generator, scaled in float32, so that a fixture
needs to keep only what the peer computed.  Every parameter that usually starts at 0 or 1 (sinks,
position embeddings, biases, norms, scales) has a value that shows.
"""

import json
import zlib
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
from ds4_daemon.model.config import ModelConfig, RopeScaling
from ds4_daemon.model.layout import tensors
from safetensors.numpy import save_file

_BASE = ModelConfig(
    vocab_size=192,
    hidden_size=128,
    num_hidden_layers=6,
    num_attention_heads=8,
    head_dim=80,  # 64 + 16 rotated: one FP8 block
    qk_rope_head_dim=16,
    q_lora_rank=48,
    o_lora_rank=32,
    o_groups=2,
    sliding_window=16,
    max_position_embeddings=4096,
    n_routed_experts=8,
    num_experts_per_tok=2,
    n_shared_experts=1,
    moe_intermediate_size=64,
    routed_scaling_factor=1.5,
    swiglu_limit=10.0,
    num_hash_layers=3,
    # Many heads: with few, every relu can be 0 and the choice of entries becomes a matter of ties.
    index_n_heads=16,
    index_head_dim=32,
    index_topk=8,
    rms_norm_eps=1e-6,
    hc_mult=4,
    hc_sinkhorn_iters=20,
    hc_eps=1e-6,
    rope_theta=10000.0,
    compress_rope_theta=160000.0,
    rope_scaling=RopeScaling(
        factor=16.0, original_max_position_embeddings=256, beta_fast=32.0, beta_slow=1.0
    ),
    compress_ratios=(0, 0, 4, 32, 4, 32),
    draft_stages=1,
)


def _with(**changes: object) -> ModelConfig:
    return replace(_BASE, **changes)  # type: ignore[arg-type]


CONFIGS: dict[str, ModelConfig] = {
    "small": _BASE,
    # Other numbers everywhere, compressed layers first, one hash layer, three streams, a clamp
    # that bites.
    "odd": _with(
        hidden_size=48,
        num_hidden_layers=5,
        num_attention_heads=6,
        head_dim=96,
        qk_rope_head_dim=32,
        q_lora_rank=40,
        o_groups=3,
        o_lora_rank=24,
        sliding_window=24,
        n_routed_experts=12,
        num_experts_per_tok=3,
        moe_intermediate_size=40,
        routed_scaling_factor=2.5,
        swiglu_limit=0.5,
        num_hash_layers=1,
        index_head_dim=64,
        index_topk=12,
        hc_mult=3,
        hc_sinkhorn_iters=7,
        compress_ratios=(4, 16, 0, 16, 4),
    ),
    # The true sizes of heads, indexer, ratios and streams.
    "true-heads": _with(
        hidden_size=64,
        num_hidden_layers=4,
        num_attention_heads=2,
        head_dim=512,
        qk_rope_head_dim=64,
        sliding_window=128,
        num_hash_layers=2,
        n_routed_experts=4,
        index_head_dim=128,
        index_topk=32,
        rope_scaling=RopeScaling(
            factor=16.0, original_max_position_embeddings=65536, beta_fast=32.0, beta_slow=1.0
        ),
        compress_ratios=(0, 4, 128, 4),
    ),
}

# "small" with seed 0 has two index scores 3e-8 apart, which is a matter of ties.
SEEDS = {"small": 4, "odd": 1, "true-heads": 2}


def random_tensors(config: ModelConfig, seed: int) -> dict[str, np.ndarray]:
    """Every tensor under its released name: float32, and int64 for `tid2eid`."""
    out = {}
    for name, shape in tensors(config):
        # Its own stream for each name: tensors do not depend on the order in which they are made.
        random = np.random.RandomState(zlib.crc32(f"{seed} {name}".encode()))
        out[name] = _tensor(config, name, shape, random)
    return out


def _tensor(
    config: ModelConfig, name: str, shape: tuple[int, ...], random: np.random.RandomState
) -> np.ndarray:
    if name.endswith("tid2eid"):
        rows = [random.permutation(config.n_routed_experts)[: shape[1]] for _ in range(shape[0])]
        return np.array(rows, np.int64)
    centre, spread = 0.0, 0.14
    if name.endswith("norm.weight"):
        centre, spread = 1.0, 0.35
    elif name.endswith("_scale"):
        centre, spread = 1.0, 0.5
    elif name.endswith(("_base", "gate.bias")):
        spread = 1.2
    elif name.endswith(("attn_sink", ".ape", "embed.weight")):
        spread = 1.7
    uniform = random.randint(-(2**20), 2**20, shape).astype(np.float32) * np.float32(2.0**-20)
    return np.float32(centre) + np.float32(spread) * uniform


def random_ids(config: ModelConfig, count: int, seed: int) -> np.ndarray:
    """Token ids `[count]`, int32."""
    return np.random.RandomState(seed).randint(0, config.vocab_size, count).astype(np.int32)


def released_config(config: ModelConfig) -> dict[str, object]:
    """The released config.json of this network."""
    fields = asdict(config)
    fields.pop("clamp_shared_expert")
    stages = fields.pop("draft_stages")
    fields["rope_scaling"] = {"type": "yarn", **fields["rope_scaling"]}
    fields["compress_ratios"] = [*config.compress_ratios, *[0] * stages]
    return fields | {
        "model_type": "deepseek_v4",
        "architectures": ["DeepseekV4ForCausalLM"],
        "num_key_value_heads": 1,
        "num_nextn_predict_layers": 1,
        "scoring_func": "sqrtsoftplus",
        "topk_method": "noaux_tc",
        "norm_topk_prob": True,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "bos_token_id": 0,
        "eos_token_id": 1,
    }


def write_release(folder: Path, config: ModelConfig, values: Mapping[str, np.ndarray]) -> Path:
    """A model folder in the released layout, without quantization or tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(released_config(config)))
    save_file(dict(values), folder / "model.safetensors")
    return folder
