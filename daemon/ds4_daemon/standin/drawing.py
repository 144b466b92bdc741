"""Draws the stand-in's numbers: for every tensor of the network, seeded random values.

Owns the geometry and the scale of each kind of tensor. Each tensor has its own generator, so none
depends on the order they are drawn in. No parameter has the value (0 or 1) that would hide a
network which forgot it. Called by `release` and `gguf_writer`, which store the same numbers twice,
and by the benches' synthetic model, which repeats them to V4 Flash's size.
"""

import math
import zlib

import numpy as np
import numpy.typing as npt

from ds4_daemon.model.config import ModelConfig, RopeScaling
from ds4_daemon.model.quant import codes
from ds4_daemon.model.quant.blocks import dequantize_blocks
from ds4_daemon.model.tensor import Bytes, Format

Floats = npt.NDArray[np.float32]

# The embedded model's sizes: small, but with V4 Flash's own head (512 = 448 + 64), window, ratios
# and constants, and with rows of whole 256-value blocks, which IQ2_XXS and Q2_K need.
GEOMETRY = ModelConfig(
    vocab_size=8192,
    hidden_size=256,
    num_hidden_layers=6,
    num_attention_heads=4,
    head_dim=512,
    qk_rope_head_dim=64,
    q_lora_rank=128,
    o_lora_rank=64,
    o_groups=2,
    sliding_window=128,
    max_position_embeddings=65_536,  # what the unscaled RoPE covers; noise needs no more
    n_routed_experts=16,
    num_experts_per_tok=6,
    n_shared_experts=1,
    moe_intermediate_size=256,
    routed_scaling_factor=1.5,
    swiglu_limit=10.0,
    num_hash_layers=3,
    index_n_heads=4,
    index_head_dim=128,
    index_topk=512,
    rms_norm_eps=1e-6,
    hc_mult=4,
    hc_sinkhorn_iters=20,
    hc_eps=1e-6,
    rope_theta=10_000.0,
    compress_rope_theta=160_000.0,
    rope_scaling=RopeScaling(16.0, 65_536, 32.0, 1.0),
    compress_ratios=(0, 0, 4, 128, 4, 128),
)

# Logits of this spread leave the likeliest of 8,192 tokens about one chance in ten.
_LOGIT_STD = 2.5


def draw(name: str, shape: tuple[int, ...], seed: int) -> Floats:
    """Values of any tensor but routed experts and `tid2eid`, all exact in bfloat16.

    Exact in bfloat16 and, past the smallest, in float16: so both files hold the same numbers
    wherever neither of them quantizes.
    """
    values: Floats = _generator(name, seed).standard_normal(shape, np.float32)
    if name.endswith("norm.weight"):
        values *= 0.2
        values += 1
    elif name.endswith("_base"):
        values *= 0.7
    elif name.endswith("_scale"):
        values = np.abs(values)
        values *= 0.5
        values += 0.5
    elif name.endswith("gate.bias"):
        values *= 0.3
    elif name == "head.weight":
        values *= _LOGIT_STD / math.sqrt(shape[1])
    elif not name.endswith(("attn_sink", ".ape")) and name != "embed.weight":
        values /= math.sqrt(shape[1])  # keeps unit variance
    return _to_bfloat16(values)


def draw_expert(name: str, shape: tuple[int, int], seed: int) -> tuple[Format, Bytes]:
    """A routed expert's matrix as valid random blocks (out, row bytes): these are the truth.

    Gate and up are IQ2_XXS, down is Q2_K, as in the published 2-bit file.
    """
    generator = _generator(name, seed)
    std = 1 / np.sqrt(shape[1])
    if ".w2." in name:
        return Format.Q2_K, _q2_k_blocks(generator, shape, std)
    return Format.IQ2_XXS, _iq2_xxs_blocks(generator, shape, std)


def expert_values(name: str, shape: tuple[int, int], seed: int) -> Floats:
    return dequantize_blocks(*draw_expert(name, shape, seed))


def draw_tid2eid(
    name: str, shape: tuple[int, int], experts: int, seed: int
) -> npt.NDArray[np.int64]:
    """(vocab, k) experts of each token: distinct, and every expert serves equally many tokens."""
    tokens, k = shape
    generator = _generator(name, seed)
    # Rows are windows of k in a repeated random order, which ends where a row does.
    rows = int(np.lcm(k, experts)) // k
    orders = [
        np.tile(generator.permutation(experts), rows * k // experts).reshape(rows, k)
        for _ in range(-(-tokens // rows))
    ]
    return np.concatenate(orders)[:tokens].astype(np.int64)


def _generator(name: str, seed: int) -> np.random.Generator:
    return np.random.default_rng([seed, zlib.crc32(name.encode())])


def _to_bfloat16(values: Floats) -> Floats:
    """Rounded to nearest, ties to even, still float32."""
    bits = values.astype(np.float32).view(np.uint32)
    bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)
    return bits.view(np.float32)


def _iq2_xxs_blocks(generator: np.random.Generator, shape: tuple[int, int], std: float) -> Bytes:
    count = shape[0] * shape[1] // Format.IQ2_XXS.block
    # Every byte pattern is a valid code: grid indices, signs and 4-bit scales alike.
    blocks = generator.integers(0, 256, (count, Format.IQ2_XXS.block_bytes), np.uint8)
    scale_rms = np.sqrt(np.mean((0.5 + np.arange(16)) ** 2)) / 4
    grid_rms = np.sqrt(np.mean(codes.iq2_grid() ** 2))
    d = std / (scale_rms * grid_rms) * generator.uniform(0.8, 1.2, count)
    blocks[:, :2] = _half_bytes(d)
    return blocks.reshape(shape[0], -1)


def _q2_k_blocks(generator: np.random.Generator, shape: tuple[int, int], std: float) -> Bytes:
    count = shape[0] * shape[1] // Format.Q2_K.block
    blocks = generator.integers(0, 256, (count, Format.Q2_K.block_bytes), np.uint8)
    # Codes 0-3 lie around 1.5, so a minimum of 1.5 scales, give or take, centres them.
    scales = generator.integers(4, 15, (count, 16), np.uint8)
    minima = scales + generator.integers(0, 3, scales.shape, np.uint8) - 1
    blocks[:, :16] = scales | minima << np.uint8(4)
    code_rms = np.sqrt(np.mean((np.arange(4) - 1.5) ** 2))
    d = std / (code_rms * np.sqrt(np.mean(np.arange(4, 15) ** 2)))
    d = d * generator.uniform(0.8, 1.2, count)
    blocks[:, 80:82] = _half_bytes(d)
    blocks[:, 82:84] = _half_bytes(1.5 * d)
    return blocks.reshape(shape[0], -1)


def _half_bytes(values: npt.NDArray[np.float64]) -> Bytes:
    return values.astype(np.float16).view(np.uint8).reshape(-1, 2)
