"""The numbers that define one DeepSeek V4 network, under the names of the released config.json.

Owns reading them from config.json or from GGUF metadata and refusing what this program cannot run:
another architecture, a missing or impossible value. It knows no tensor; `layout` derives those.
Called by the two file readers; everything in `model` is built from a ModelConfig.
"""

import math
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Self

from ds4_daemon.errors import ModelFileError

# A compressed layer of this ratio overlaps its windows and has an indexer (CSA); every other
# non-zero ratio pools disjoint windows (HCA). The release tells them apart by this number too.
CSA_RATIO = 4

GGUF_ARCHITECTURE = "deepseek4"

_GGUF_KEYS = {
    "vocab_size": "vocab_size",
    "hidden_size": "embedding_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "head_dim": "attention.key_length",
    "qk_rope_head_dim": "rope.dimension_count",
    "q_lora_rank": "attention.q_lora_rank",
    "o_lora_rank": "attention.output_lora_rank",
    "o_groups": "attention.output_group_count",
    "sliding_window": "attention.sliding_window",
    "max_position_embeddings": "context_length",
    "n_routed_experts": "expert_count",
    "num_experts_per_tok": "expert_used_count",
    "n_shared_experts": "expert_shared_count",
    "moe_intermediate_size": "expert_feed_forward_length",
    "routed_scaling_factor": "expert_weights_scale",
    "swiglu_limit": "swiglu_clamp_exp",
    "num_hash_layers": "hash_layer_count",
    "index_n_heads": "attention.indexer.head_count",
    "index_head_dim": "attention.indexer.key_length",
    "index_topk": "attention.indexer.top_k",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "hc_mult": "hyper_connection.count",
    "hc_sinkhorn_iters": "hyper_connection.sinkhorn_iterations",
    "hc_eps": "hyper_connection.epsilon",
    "rope_theta": "rope.freq_base",
    "compress_rope_theta": "attention.compress_rope_freq_base",
    "compress_ratios": "attention.compress_ratios",
}
_GGUF_ROPE_KEYS = {
    "factor": "rope.scaling.factor",
    "original_max_position_embeddings": "rope.scaling.original_context_length",
    "beta_fast": "rope.scaling.yarn_beta_fast",
    "beta_slow": "rope.scaling.yarn_beta_slow",
}

# Counts that are walked through before any file is looked at, far above every release. The other
# sizes only have to be indices, which are int32 on the device.
_MOST = {
    "num_hidden_layers": 1024,
    "n_routed_experts": 4096,
    "num_experts_per_tok": 4096,
    "hc_mult": 64,
    "hc_sinkhorn_iters": 1000,
}

# What the network computes in one way only; a file that says otherwise is another network.
_FIXED: dict[str, Any] = {
    "num_key_value_heads": 1,
    "n_shared_experts": 1,
    "scoring_func": "sqrtsoftplus",
    "topk_method": "noaux_tc",
    "norm_topk_prob": True,
    "hidden_act": "silu",
    "attention_bias": False,
    "tie_word_embeddings": False,
}
_GGUF_FIXED: dict[str, Any] = {
    "attention.head_count_kv": 1,
    "expert_shared_count": 1,
    "expert_gating_func": 4,  # llama.cpp's number for sqrt(softplus)
    "expert_weights_norm": True,
    "rope.scaling.type": "yarn",
}


@dataclass(frozen=True, slots=True)
class RopeScaling:
    """YaRN's constants, for the compressed layers only."""

    factor: float
    original_max_position_embeddings: int
    beta_fast: float
    beta_slow: float


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Sizes and constants of the network; widths in channels, limits in tokens or positions."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    head_dim: int
    qk_rope_head_dim: int
    q_lora_rank: int
    o_lora_rank: int
    o_groups: int
    sliding_window: int
    max_position_embeddings: int
    n_routed_experts: int
    num_experts_per_tok: int
    n_shared_experts: int
    moe_intermediate_size: int
    routed_scaling_factor: float
    swiglu_limit: float
    num_hash_layers: int
    index_n_heads: int
    index_head_dim: int
    index_topk: int
    rms_norm_eps: float
    hc_mult: int
    hc_sinkhorn_iters: int
    hc_eps: float
    rope_theta: float
    compress_rope_theta: float
    rope_scaling: RopeScaling
    compress_ratios: tuple[int, ...]  # one a layer: 0 sliding window only, 4 CSA, any other HCA
    # Only DeepSeek's own code leaves the shared expert unclamped; its report and the others clamp.
    clamp_shared_expert: bool = True
    # Blocks of `mtp.*` beside the network, told from `compress_ratios`: April's release has 1.
    draft_stages: int = 0

    @property
    def is_0731(self) -> bool:
        """The later release: the same network, but trained on other prompts for effort."""
        return self.draft_stages == 3

    @classmethod
    def from_config_json(cls, raw: Mapping[str, Any]) -> Self:
        """From the released config.json; raises ModelFileError."""
        kind = raw.get("model_type")
        if kind != "deepseek_v4":
            raise ModelFileError(
                "MODEL_ARCHITECTURE",
                f"config.json describes model_type {kind!r}, not 'deepseek_v4'.",
                "ds4 runs DeepSeek V4 only; name a DeepSeek V4 Flash folder or GGUF",
            )
        scaling = raw.get("rope_scaling")
        if not isinstance(scaling, Mapping):
            raise _invalid("rope_scaling", scaling, "it must be an object")
        _require(raw, _FIXED)
        _require({"rope_scaling.type": scaling.get("type")}, {"rope_scaling.type": "yarn"})
        return cls._build(raw, scaling)

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any]) -> Self:
        """From GGUF metadata (plain values and lists, by key); raises ModelFileError."""
        kind = metadata.get("general.architecture")
        if kind != GGUF_ARCHITECTURE:
            raise ModelFileError(
                "MODEL_ARCHITECTURE",
                f"The GGUF holds architecture {kind!r}, not '{GGUF_ARCHITECTURE}'.",
                "ds4 runs DeepSeek V4 only; name a DeepSeek V4 Flash folder or GGUF",
            )

        def value(key: str) -> Any:
            return metadata.get(f"{GGUF_ARCHITECTURE}.{key}")

        fixed = {key: value(key) for key in _GGUF_FIXED if value(key) is not None}
        _require(fixed, _GGUF_FIXED)
        raw = {name: value(key) for name, key in _GGUF_KEYS.items()}
        raw["swiglu_limit"] = _single(raw["swiglu_limit"])
        return cls._build(raw, {name: value(key) for name, key in _GGUF_ROPE_KEYS.items()})

    @classmethod
    def _build(cls, raw: Mapping[str, Any], scaling: Mapping[str, Any]) -> Self:
        values: dict[str, Any] = {}
        for field in fields(cls):
            if field.name == "draft_stages":
                continue
            if field.type is int:
                least = 0 if field.name == "num_hash_layers" else 1
                values[field.name] = _integer(raw, field.name, least)
            elif field.type is float:
                values[field.name] = _positive(raw, field.name)
        values["rope_scaling"] = RopeScaling(
            factor=_positive(scaling, "factor"),
            original_max_position_embeddings=_integer(
                scaling, "original_max_position_embeddings", 1
            ),
            beta_fast=_positive(scaling, "beta_fast"),
            beta_slow=_positive(scaling, "beta_slow"),
        )
        ratios = _ratios(raw, values["num_hidden_layers"])
        values["compress_ratios"] = ratios[: values["num_hidden_layers"]]
        values["draft_stages"] = len(ratios) - values["num_hidden_layers"]
        config = cls(**values)
        config._check()
        return config

    def _check(self) -> None:
        """Refuse combinations that no tensor shape would catch."""
        rules = (
            (self.num_attention_heads % self.o_groups == 0, "o_groups",
             "it must divide num_attention_heads"),
            (self.qk_rope_head_dim % 2 == 0, "qk_rope_head_dim", "it must be even"),
            (self.qk_rope_head_dim <= self.head_dim, "qk_rope_head_dim",
             "it must not pass head_dim"),
            (self.qk_rope_head_dim <= self.index_head_dim, "qk_rope_head_dim",
             "it must not pass index_head_dim"),
            (self.num_experts_per_tok <= self.n_routed_experts, "num_experts_per_tok",
             "it must not pass n_routed_experts"),
            (self.num_hash_layers <= self.num_hidden_layers, "num_hash_layers",
             "it must not pass num_hidden_layers"),
            (self.compress_rope_theta > 1 and self.rope_theta > 1, "rope_theta",
             "the bases must be above 1"),
        )  # fmt: skip
        for holds, name, why in rules:
            if not holds:
                raise _invalid(name, getattr(self, name), why)


def _invalid(name: str, value: object, why: str) -> ModelFileError:
    return ModelFileError(
        "MODEL_CONFIG_INVALID",
        f"The model's configuration has {name} = {reprlib.repr(value)}: {why}.",
        "the model files are damaged or not a DeepSeek V4 release; fetch them again",
    )


def _require(raw: Mapping[str, Any], fixed: Mapping[str, Any]) -> None:
    for name, wanted in fixed.items():
        if name in raw and raw[name] != wanted:
            raise _invalid(name, raw[name], f"this network has {wanted!r}")


def _present(raw: Mapping[str, Any], name: str) -> Any:
    value = raw.get(name)
    if value is None:
        raise ModelFileError(
            "MODEL_CONFIG_MISSING",
            f"The model's configuration does not give {name}.",
            "the model files are incomplete or not a DeepSeek V4 release; fetch them again",
        )
    return value


def _integer(raw: Mapping[str, Any], name: str, least: int) -> int:
    value = _present(raw, name)
    most = _MOST.get(name, 2**31 - 1)
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise _invalid(name, value, f"it must be a whole number from {least} to {most}")
    return value


def _positive(raw: Mapping[str, Any], name: str) -> float:
    value = _present(raw, name)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not (number and math.isfinite(value) and value > 0):
        raise _invalid(name, value, "it must be a positive number")
    return float(value)


def _single(value: Any) -> Any:
    """The one value of a per-layer array; files that differ by layer are not this network."""
    if not isinstance(value, list):
        return value
    if len(set(value)) != 1:
        raise _invalid("swiglu_limit", value, "all layers must share one")
    return value[0]


def _ratios(raw: Mapping[str, Any], layers: int) -> tuple[int, ...]:
    ratios = _present(raw, "compress_ratios")
    if not isinstance(ratios, list) or not all(type(r) is int and 0 <= r < 2**31 for r in ratios):
        raise _invalid("compress_ratios", ratios, "it must be a list of whole numbers from 0")
    if len(ratios) < layers:
        raise _invalid("compress_ratios", ratios, f"it must have an entry for all {layers} layers")
    return tuple(ratios)  # what follows the layers belongs to the draft stages
