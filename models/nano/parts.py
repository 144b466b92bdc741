"""What lies between the network's matrix products, one function each, plain or compiled.

In training this model is bound by memory and not by arithmetic: eagerly a step of 65,536 tokens
moves about 900 GB, most of it in chains of elementwise operations (the norms, rotations, softmaxes
and the hyper-connections). Compiled, each of these functions reads its inputs once and writes its
result once. They work in float32 and return what they were given; `fused` calls them.

N is the tokens of a batch, B rows of S tokens; H heads of width W; E entries of the cache.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from models.nano.attention import HIDDEN, fp8_rounded

_VERSIONS = 64  # of one function: by shapes, and by what is switched on


class Parts:
    """The functions of this module, compiled; plain where `compiled` is switched off."""

    def __init__(self) -> None:
        torch._dynamo.config.recompile_limit = _VERSIONS
        self._plain = {f.__name__: f for f in _FUNCTIONS}
        self._compiled = {
            name: torch.compile(f, dynamic=name in _BY_ROW) for name, f in self._plain.items()
        }
        self.compiled = True

    def __getattr__(self, name: str) -> Callable[..., Any]:
        chosen = self._compiled if self.compiled else self._plain
        try:
            return chosen[name]
        except KeyError:
            raise AttributeError(name) from None


def normed(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Root-mean-square norm of x [..., W] with a weight."""
    y = x.float()
    y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + eps)
    return (y * weight.float()).to(x.dtype)


def turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [N, H, W] with its last channels rotated, by pairs; cos and sin [N, 1, pairs]."""
    return _turned(x.float(), cos, sin).to(x.dtype)


def query(x: Tensor, cos: Tensor, sin: Tensor, eps: float) -> Tensor:
    """Queries [N, H, W]: each head normed without a weight, and rotated."""
    y = x.float()
    y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + eps)
    return _turned(y, cos, sin).to(x.dtype)


def key(x: Tensor, weight: Tensor, cos: Tensor, sin: Tensor, eps: float, rounded: bool) -> Tensor:
    """Keys [N, W], normed and rotated, `rounded` as the cache rounds them; cos, sin [N, pairs]."""
    y = x.float()
    y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + eps) * weight.float()
    return _stored(_turned(y, cos, sin).to(x.dtype), cos, rounded)


def pooled(
    kv: Tensor, gate: Tensor, bias: Tensor, weight: Tensor, cos: Tensor, sin: Tensor, eps: float,
    rounded: bool,
) -> Tensor:  # fmt: skip
    """Entries [B, E, W] of kv and gate [B, S, W] or, where each pools the last window's first half
    too, [B, S, 2 W]; bias [ratio, as wide], cos and sin [B, E, pairs]."""
    rows, tokens, wide = kv.shape
    ratio, width = bias.shape[0], weight.shape[0]
    count = tokens // ratio
    kv = kv[:, : count * ratio].reshape(rows, count, ratio, wide)
    gate = gate[:, : count * ratio].reshape(rows, count, ratio, wide).float() + bias.float()
    if wide != width:
        last = nn.functional.pad(kv[:, :-1, :, :width], (0, 0, 0, 0, 1, 0))
        kv = torch.cat([last, kv[..., width:]], dim=2)
        # Finite, as minus infinity times a gradient of 0 is no number; its exponential is 0.
        before = nn.functional.pad(gate[:, :-1, :, :width], (0, 0, 0, 0, 1, 0), value=HIDDEN)
        gate = torch.cat([before, gate[..., width:]], dim=2)
    y = (kv.float() * gate.softmax(dim=2)).sum(dim=2)
    y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + eps) * weight.float()
    return _stored(_turned(y, cos, sin).to(kv.dtype), cos, rounded)


def looks(
    near: Tensor, far: Tensor | None, allowed: Tensor | None, sinks: Tensor, scaling: float,
    ratio: int,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """Attention's weights from its products: near [B, S, H, 2 windows], of the last and the own
    window's keys, and far [B, S, H, E], of entries that close every `ratio` tokens, all of them or
    those `allowed` [B, S, E]. The sinks [H] take their share."""
    tokens, window = near.shape[1], near.shape[3] // 2
    at = torch.arange(tokens, device=near.device).view(-1, 1)
    slot = torch.arange(2 * window, device=near.device).view(1, -1)
    inside = at % window
    seen = (slot > inside) & (slot <= inside + window) & ((at >= window) | (slot >= window))
    close = (near.float() * scaling).masked_fill(~seen.view(1, tokens, 1, -1), HIDDEN)
    sink = sinks.float().view(1, 1, -1, 1)
    most = torch.maximum(close.detach().amax(-1, keepdim=True), sink.detach())
    if far is None:
        raised = torch.exp(close - most)
        total = raised.sum(-1, keepdim=True) + torch.exp(sink - most)
        return (raised / total).to(near.dtype), None
    shown = _closed(at, far.shape[3], ratio).unsqueeze(0) if allowed is None else allowed
    wide = (far.float() * scaling).masked_fill(~shown.unsqueeze(2), HIDDEN)
    most = torch.maximum(most, wide.detach().amax(-1, keepdim=True))
    raised, distant = torch.exp(close - most), torch.exp(wide - most)
    total = raised.sum(-1, keepdim=True) + distant.sum(-1, keepdim=True) + torch.exp(sink - most)
    return (raised / total).to(near.dtype), (distant / total).to(far.dtype)


def index_scores(products: Tensor, weights: Tensor, scale: float, ratio: int) -> Tensor:
    """The indexer's scores [B, S, E] from its products [B, S, H, E] and heads' weights [B, S, H];
    HIDDEN where an entry is not closed yet."""
    heads = torch.relu(products.float()) * (weights.float() * scale).unsqueeze(-1)
    at = torch.arange(products.shape[1], device=products.device).view(-1, 1)
    shown = _closed(at, products.shape[3], ratio)
    return heads.sum(dim=2).masked_fill(~shown, HIDDEN)


def index_loss(scores: Tensor, looked: Tensor) -> Tensor:
    """KL(where the heads look || the indexer's scores): scores [B, S, E], looked [B, S, H, E]."""
    summed = looked.float().sum(dim=2)
    mass = summed.sum(dim=-1, keepdim=True)
    target = summed / mass.clamp_min(1e-9)
    guess = torch.log_softmax(scores, dim=-1)
    divergence = (target * (target.clamp_min(1e-9).log() - guess)).sum(dim=-1)
    seen = (scores[..., 0] > HIDDEN / 2) & (mass[..., 0] > 1e-6)
    return (divergence * seen).sum() / seen.sum().clamp_min(1)


def gated(both: Tensor, shares: Tensor | None, limit: float) -> Tensor:
    """SwiGLU of gate and up [N, 2 W] side by side, clamped; times `shares` [N]."""
    gate, up = both.float().chunk(2, dim=-1)
    y = nn.functional.silu(gate.clamp(max=limit)) * up.clamp(min=-limit, max=limit)
    return (y if shares is None else y * shares.float().unsqueeze(-1)).to(both.dtype)


def summed(rows: Tensor, places: Tensor) -> Tensor:
    """The sum [N, W] of the rows [M, W] at each token's places [N, k]."""
    return rows[places].float().sum(dim=1).to(rows.dtype)


def token_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """Loss of each target [N] in nats, from logits [N, vocabulary]."""
    wide = logits.float()
    return torch.logsumexp(wide, dim=-1) - wide.gather(-1, targets.unsqueeze(-1)).squeeze(-1)


def collapse(
    streams: Tensor, fn: Tensor, base: Tensor, scale: Tensor, rounds: int, eps: float,
    norm_eps: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """streams [N, m, D] → what the block reads [N, D], and how its answer goes back."""
    m = streams.shape[1]
    flat = streams.flatten(1).float()
    flat = flat * torch.rsqrt(flat.square().mean(-1, keepdim=True) + norm_eps)
    pre, post, comb = nn.functional.linear(flat, fn.float()).split([m, m, m * m], dim=-1)
    pre_base, post_base, comb_base = base.float().split([m, m, m * m])
    scale = scale.float()
    pre = torch.sigmoid(pre * scale[0] + pre_base) + eps
    post = 2 * torch.sigmoid(post * scale[1] + post_base)
    comb = torch.softmax((comb * scale[2] + comb_base).view(-1, m, m), dim=-1) + eps
    comb = comb / (comb.sum(dim=-2, keepdim=True) + eps)
    for _ in range(rounds - 1):
        comb = comb / (comb.sum(dim=-1, keepdim=True) + eps)
        comb = comb / (comb.sum(dim=-2, keepdim=True) + eps)
    x = (pre.unsqueeze(-1) * streams).sum(dim=1).to(streams.dtype)
    return x, post, comb


def expand(streams: Tensor, y: Tensor, post: Tensor, comb: Tensor) -> Tensor:
    """streams'[k] = post[k] y + the sum over j of comb[j, k] streams[j]."""
    mixed = (comb.unsqueeze(-1) * streams.unsqueeze(2)).sum(dim=1)
    return (post.unsqueeze(-1) * y.unsqueeze(1) + mixed).to(streams.dtype)


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    rope = 2 * cos.shape[-1]
    a, b = x[..., -rope:].unflatten(-1, (-1, 2)).unbind(-1)
    pairs = torch.stack([a * cos - b * sin, a * sin + b * cos], dim=-1)
    return torch.cat([x[..., :-rope], pairs.flatten(-2)], dim=-1)


def _stored(x: Tensor, cos: Tensor, rounded: bool) -> Tensor:
    return fp8_rounded(x, x.shape[-1] - 2 * cos.shape[-1]) if rounded else x


def _closed(at: Tensor, entries: int, ratio: int) -> Tensor:
    """[S, E]: which entries are closed at each position `at` [S, 1]."""
    return torch.arange(entries, device=at.device).view(1, -1) < (at + 1) // ratio


_FUNCTIONS: tuple[Callable[..., Any], ...] = (
    normed, turned, query, key, pooled, looks, index_scores, index_loss, gated, summed,
    token_losses, collapse, expand,
)  # fmt: skip
# Their shapes change with the rows' length; the others see N tokens, however they are cut.
_BY_ROW = frozenset(("pooled", "looks", "index_scores", "index_loss"))
