"""Makes network.npz: what transformers computes for the random models of tests/model.

    python -m tests.vectors.make_network

`DeepseekV4ForCausalLM` in float32, once as it is and once with the rounding of cached values that
the official inference applies and transformers leaves out, written here in torch.  Also inputs and
results of the rounding functions themselves, ties and extremes included.
Needs the `bench` extra; made with torch 2.13.0 and transformers 5.23.0.
"""

import types
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from ds4_daemon.model.config import ModelConfig
from torch import Tensor
from transformers import DynamicCache

from bench.transformers_peer import peer_model
from tests.model.random_models import CONFIGS, SEEDS, random_ids, random_tensors

OUT = Path(__file__).with_name("network.npz")
TOKENS = 300
ROUNDED_TOKENS = 2048
# With rounding, a float's last bit can flip a code, a code a route, and from there two right
# implementations drift apart. How far depends on the model, so models are taken on which the peer
# agrees with itself, whole against cut: the first ones, whatever ds4 makes of them.
ROUNDED_MODELS = 3
SELF_AGREEMENT = 0.999
# What `float8_e4m3fn` and e2m1 can hold, and the smallest maximum a block is scaled for.
FP8 = {"block": 64, "largest": 448.0, "least": 1e-4}
FP4 = {"block": 32, "largest": 6.0, "least": 6 * 2.0**-126}
E2M1 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])


def scales(blocks: Tensor, largest: float, least: float) -> Tensor:
    """The smallest powers of two by which no value of a block exceeds `largest`."""
    amax = blocks.abs().amax(-1, keepdim=True).clamp_min(least)
    return torch.exp2(torch.ceil(torch.log2(amax / largest)))


def round_fp8(x: Tensor) -> Tensor:
    blocks = x.unflatten(-1, (-1, int(FP8["block"])))
    scale = scales(blocks, FP8["largest"], FP8["least"])
    codes = (blocks / scale).clamp(-FP8["largest"], FP8["largest"]).to(torch.float8_e4m3fn)
    return (codes.float() * scale).flatten(-2)


def round_fp4(x: Tensor) -> Tensor:
    blocks = x.unflatten(-1, (-1, int(FP4["block"])))
    scale = scales(blocks, FP4["largest"], FP4["least"])
    v = (blocks / scale).clamp(-FP4["largest"], FP4["largest"])
    # The code is the count of midpoints passed; a midpoint itself goes to the even code.
    middles = (E2M1[1:] + E2M1[:-1]) / 2
    passed = v.abs()[..., None] > middles
    tied = (v.abs()[..., None] == middles) & (torch.arange(7) % 2 == 1)
    codes = (passed | tied).sum(-1)
    return (torch.sign(v) * E2M1[codes] * scale).flatten(-2)


def hadamard(x: Tensor) -> Tensor:
    matrix = torch.ones(1, 1)
    while len(matrix) < x.shape[-1]:
        matrix = torch.kron(torch.tensor([[1.0, 1.0], [1.0, -1.0]]), matrix)
    return x @ (matrix * x.shape[-1] ** -0.5)


Scorer = Callable[[Tensor, Tensor, Tensor], Tensor]


def add_rounding(model: torch.nn.Module, rotated: int) -> None:
    """FP8 on the unrotated channels of every cached row, FP4 where indexer keys meet queries."""

    def rounded(_module: object, _inputs: object, out: Tensor) -> Tensor:
        return torch.cat([round_fp8(out[..., :-rotated]), out[..., -rotated:]], -1)

    for layer in model.model.layers:
        attention = layer.self_attn
        attention.kv_norm.register_forward_hook(rounded)
        if attention.compressor is None:
            continue
        attention.compressor.kv_norm.register_forward_hook(rounded)
        if hasattr(attention.compressor, "indexer"):
            scorer = attention.compressor.indexer.scorer
            plain = scorer.forward

            def scored(
                _self: object, q: Tensor, k: Tensor, h: Tensor, plain: Scorer = plain
            ) -> Tensor:
                keys = round_fp4(hadamard(k)) if k.shape[1] else k
                return plain(round_fp4(hadamard(q)), keys, h)

            scorer.forward = types.MethodType(scored, scorer)


def first_layer_rows(model: torch.nn.Module, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Logits `[n, vocab]` and the first layer's rounded, unrotated channels `[n, nope]`."""
    seen: list[Tensor] = []
    norm = model.model.layers[0].self_attn.kv_norm
    handle = norm.register_forward_hook(lambda _m, _i, out: seen.append(out))
    with torch.inference_mode():
        logits = model(ids[None], use_cache=False).logits[0]
    handle.remove()
    return logits, seen[0][0]


def codes_of(rows: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """e4m3 codes (uint8) and scale exponents (int8) of rows that are rounded already."""
    blocks = rows.unflatten(-1, (-1, int(FP8["block"])))
    scale = scales(blocks, FP8["largest"], FP8["least"])
    codes = (blocks / scale).to(torch.float8_e4m3fn).view(torch.uint8).flatten(-2)
    return codes.numpy(), torch.log2(scale)[..., 0].to(torch.int8).numpy()


def rounding_inputs(block: int, largest: float) -> np.ndarray:
    """Rows `[n, 4 · block]`: random at many sizes, ties, subnormal codes, zeros, extremes."""
    random = np.random.RandomState(7)
    rows = [random.standard_normal((4, 4 * block)) * 10.0**e for e in range(-44, 37, 4)]
    # Multiples of a sixteenth up to `largest`: every tie between neighbouring codes.
    steps = np.arange(0, largest, 1 / 16)
    ties = np.resize(steps, (len(steps) // (4 * block) + 1, 4 * block))
    ties[:, ::block] = largest  # scale 1
    tiny = ties * 2.0**-9
    tiny[:, ::block] = largest
    edges = np.zeros((8, 4 * block))
    # Maxima at and one ulp around where the exponent changes.
    for i, m in enumerate((largest, np.nextafter(np.float32(largest), np.float32(0)))):
        edges[2 * i, ::block] = m
        edges[2 * i + 1, ::block] = -m * 2.0**-7
    edges[4, :] = -0.0
    edges[5, ::block] = 3.0e38
    edges[6, ::block] = np.finfo(np.float32).tiny
    edges[7, ::block] = 1e-45
    with np.errstate(under="ignore"):
        return np.concatenate([*rows, ties, -ties, tiny, edges]).astype(np.float32)


def whole_and_cut(model: torch.nn.Module, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Logits in one go, first-layer rows, and logits in pieces of 37 through a cache."""
    whole, rows = first_layer_rows(model, ids)
    cache = DynamicCache(config=model.config)
    with torch.inference_mode():
        pieces = [
            model(piece[None], past_key_values=cache, use_cache=True).logits[0]
            for piece in ids.split(37)
        ]
    return whole, rows, torch.cat(pieces)


def rounded_vectors(config: ModelConfig) -> dict[str, np.ndarray]:
    """What the peer makes of the first models on which it agrees with itself."""
    ids = torch.from_numpy(random_ids(config, ROUNDED_TOKENS, 99).astype(np.int64))
    seeds: list[int] = []
    top1: list[np.ndarray] = []
    codes: list[np.ndarray] = []
    exponents: list[np.ndarray] = []
    seed = 0
    while len(seeds) < ROUNDED_MODELS:
        model = peer_model(config, random_tensors(config, seed).__getitem__)
        add_rounding(model, config.qk_rope_head_dim)
        whole, rows, cut = whole_and_cut(model, ids)
        likeliest = whole.argmax(-1)
        if (likeliest == cut.argmax(-1)).float().mean() >= SELF_AGREEMENT:
            seeds.append(seed)
            top1.append(likeliest.numpy().astype(np.int16))
            row_codes, row_exponents = codes_of(rows[:, : -config.qk_rope_head_dim])
            codes.append(row_codes)
            exponents.append(row_exponents)
        seed += 1
    return {
        "rounded/seeds": np.array(seeds),
        "rounded/top1": np.stack(top1),
        "rounded/codes": np.stack(codes),
        "rounded/exponents": np.stack(exponents),
    }


def main() -> None:
    torch.set_num_threads(2)
    out: dict[str, np.ndarray] = {}
    for name, config in CONFIGS.items():
        seed = SEEDS[name]
        tensors = random_tensors(config, seed)
        model = peer_model(config, tensors.__getitem__)
        ids = torch.from_numpy(random_ids(config, TOKENS, seed).astype(np.int64))
        with torch.inference_mode():
            out[f"{name}/logits"] = model(ids[None], use_cache=False).logits[0].numpy()
    out |= rounded_vectors(CONFIGS["small"])
    for name, spec, function in (("fp8", FP8, round_fp8), ("fp4", FP4, round_fp4)):
        x = rounding_inputs(int(spec["block"]), spec["largest"])
        out[f"{name}/in"], out[f"{name}/out"] = x, function(torch.from_numpy(x)).numpy()
    # A row with one value has one result in any order of summation; the others have not.
    x = np.random.RandomState(8).standard_normal((144, 128)).astype(np.float32)
    x[16:] *= np.eye(128, dtype=np.float32)
    out["hadamard/in"], out["hadamard/out"] = x, hadamard(torch.from_numpy(x)).numpy()
    np.savez_compressed(OUT, allow_pickle=False, **out)
    print({k: (v.shape, str(v.dtype)) for k, v in out.items()}, OUT.stat().st_size)


if __name__ == "__main__":
    main()
