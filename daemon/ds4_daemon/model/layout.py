"""Which tensors a network of a given configuration has, under the names of the release.

Owns those names, their shapes and the check of a file's entries against them: headers only, no
data. It does not know file formats; both readers call `check` before a model counts as opened.
"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from ds4_daemon.errors import ModelFileError
from ds4_daemon.model.config import CSA_RATIO, ModelConfig
from ds4_daemon.model.tensor import Format

Shape = tuple[int, ...]
EXPERT_PARTS = ("w1", "w2", "w3")  # gate, down, up


class Region(NamedTuple):
    """Where bytes lie: which of the model's files, and from where."""

    file: int
    offset: int
    nbytes: int


class Entry(NamedTuple):
    """One tensor as a file's header describes it."""

    shape: Shape
    format: Format
    data: Region
    scale: Region | None = None


def expert_name(layer: int, expert: int, part: str) -> str:
    return f"layers.{layer}.ffn.experts.{expert}.{part}.weight"


def tensors(config: ModelConfig) -> Iterator[tuple[str, Shape]]:
    """Every tensor of the network and its logical shape; draft stages (`mtp.*`) are not part."""
    c = config
    streams = c.hc_mult * c.hidden_size
    yield "embed.weight", (c.vocab_size, c.hidden_size)
    for layer, ratio in enumerate(c.compress_ratios):
        for name, shape in _attention(c, ratio):
            yield f"layers.{layer}.{name}", shape
        for name, shape in _feed_forward(c, layer):
            yield f"layers.{layer}.{name}", shape
        mixes = (2 + c.hc_mult) * c.hc_mult
        for block in ("attn", "ffn"):
            yield f"layers.{layer}.hc_{block}_fn", (mixes, streams)
            yield f"layers.{layer}.hc_{block}_base", (mixes,)
            yield f"layers.{layer}.hc_{block}_scale", (3,)
            yield f"layers.{layer}.{block}_norm.weight", (c.hidden_size,)
    yield "hc_head_fn", (c.hc_mult, streams)
    yield "hc_head_base", (c.hc_mult,)
    yield "hc_head_scale", (1,)
    yield "norm.weight", (c.hidden_size,)
    yield "head.weight", (c.vocab_size, c.hidden_size)


def _attention(c: ModelConfig, ratio: int) -> Iterator[tuple[str, Shape]]:
    heads_width = c.num_attention_heads * c.head_dim
    yield "attn.wq_a.weight", (c.q_lora_rank, c.hidden_size)
    yield "attn.q_norm.weight", (c.q_lora_rank,)
    yield "attn.wq_b.weight", (heads_width, c.q_lora_rank)
    yield "attn.wkv.weight", (c.head_dim, c.hidden_size)
    yield "attn.kv_norm.weight", (c.head_dim,)
    yield "attn.attn_sink", (c.num_attention_heads,)
    yield "attn.wo_a.weight", (c.o_groups * c.o_lora_rank, heads_width // c.o_groups)
    yield "attn.wo_b.weight", (c.hidden_size, c.o_groups * c.o_lora_rank)
    if ratio:
        yield from _compressor(c, "attn.compressor", ratio, c.head_dim)
    if ratio == CSA_RATIO:
        yield "attn.indexer.wq_b.weight", (c.index_n_heads * c.index_head_dim, c.q_lora_rank)
        yield "attn.indexer.weights_proj.weight", (c.index_n_heads, c.hidden_size)
        yield from _compressor(c, "attn.indexer.compressor", ratio, c.index_head_dim)


def _compressor(c: ModelConfig, prefix: str, ratio: int, width: int) -> Iterator[tuple[str, Shape]]:
    halves = 2 if ratio == CSA_RATIO else 1  # overlapping windows need a second half a token
    yield f"{prefix}.wkv.weight", (halves * width, c.hidden_size)
    yield f"{prefix}.wgate.weight", (halves * width, c.hidden_size)
    yield f"{prefix}.ape", (ratio, halves * width)
    yield f"{prefix}.norm.weight", (width,)


def _feed_forward(c: ModelConfig, layer: int) -> Iterator[tuple[str, Shape]]:
    wide, narrow = (
        (c.moe_intermediate_size, c.hidden_size),
        (c.hidden_size, c.moe_intermediate_size),
    )
    yield "ffn.gate.weight", (c.n_routed_experts, c.hidden_size)
    if layer < c.num_hash_layers:
        yield "ffn.gate.tid2eid", (c.vocab_size, c.num_experts_per_tok)
    else:
        yield "ffn.gate.bias", (c.n_routed_experts,)
    for owner in ("shared_experts", *(f"experts.{e}" for e in range(c.n_routed_experts))):
        for part in EXPERT_PARTS:
            yield f"ffn.{owner}.{part}.weight", narrow if part == "w2" else wide


def check(config: ModelConfig, entries: Mapping[str, Entry], source: str) -> None:
    """Raise ModelFileError unless every tensor is there with its shape and a fitting format."""
    for name, shape in tensors(config):
        entry = entries.get(name)
        if entry is None:
            raise ModelFileError(
                "MODEL_TENSOR_MISSING",
                f"{source} has no tensor {name}.",
                "the model files are incomplete; fetch them again",
            )
        if entry.shape != shape:
            raise ModelFileError(
                "MODEL_TENSOR_SHAPE",
                f"{name} in {source} has shape {list(entry.shape)}, the configuration asks for "
                f"{list(shape)}.",
                "configuration and weights are not of one model; fetch both again",
            )
        integers = entry.format in (Format.I32, Format.I64)
        if integers != name.endswith("tid2eid"):
            raise ModelFileError(
                "MODEL_TENSOR_TYPE",
                f"{name} in {source} has type {entry.format.label}, which does not fit it.",
                "the file was not written for DeepSeek V4; fetch it again",
            )
