"""The network's forward over `parts`: the same as transformers' modules, in a third of the memory
traffic. `install` replaces the layers' forwards; parameters stay where they are.

Queries stay as their projection leaves them, [tokens, heads, width], and keys come in blocks of the
window, so that every product of attention is one batched matrix product without a copy. Tokens go
to their experts by sorting; both ways back are sums over places, in forward and backward.
"""

from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from models.nano.parts import Parts


def install(layer: Any, parts: Parts, eps: float) -> None:
    """Give a layer the fused forward."""
    layer.parts = parts
    layer.eps = eps
    layer.forward = MethodType(_layer, layer)


def _layer(self: Any, streams: Tensor, **kwargs: Any) -> Tensor:
    rows, tokens, m, width = streams.shape
    parts, count = self.parts, rows * tokens
    cos, sin = kwargs["position_embeddings"][self.self_attn.rope_layer_type]
    cos, sin = (t.float().expand(rows, tokens, -1) for t in (cos, sin))
    streams = streams.reshape(count, m, width)
    for mix, norm in (
        (self.attn_hc, self.input_layernorm), (self.ffn_hc, self.post_attention_layernorm)
    ):  # fmt: skip
        x, post, comb = parts.collapse(
            streams, mix.fn, mix.base, mix.scale,
            mix.hc_sinkhorn_iters, mix.hc_eps, mix.input_norm.eps,
        )  # fmt: skip
        h = parts.normed(x, norm.weight, self.eps)
        if mix is self.attn_hc:
            y = _attention(self.self_attn, h.view(rows, tokens, width), cos, sin, parts, self.eps)
        else:
            y = _experts(self.mlp, h, kwargs["input_ids"], parts)
        streams = parts.expand(streams, y, post, comb)
    return streams.view(rows, tokens, m, width)


def _attention(attn: Any, x: Tensor, cos: Tensor, sin: Tensor, parts: Parts, eps: float) -> Tensor:
    """x [B, S, D] → [B S, D]; cos and sin [B, S, pairs]."""
    rows, tokens, _ = x.shape
    heads, width, window = attn.num_heads, attn.head_dim, attn.sliding_window
    if tokens % window:
        raise ValueError(f"{tokens} tokens are no multiple of the window's {window}")
    count, blocks = rows * tokens, tokens // window
    flat_cos, flat_sin = cos.reshape(count, -1), sin.reshape(count, -1)
    head_cos, head_sin = flat_cos.unsqueeze(1), flat_sin.unsqueeze(1)
    flat = x.view(count, -1)
    rounded = attn.round_kv
    qr = parts.normed(attn.q_a_proj(flat), attn.q_a_norm.weight, eps)
    q = parts.query(attn.q_b_proj(qr).view(count, heads, width), head_cos, head_sin, eps)
    own = parts.key(attn.kv_proj(flat), attn.kv_norm.weight, flat_cos, flat_sin, eps, rounded)
    own = own.view(rows, blocks, window, width)
    before = nn.functional.pad(own, (0, 0, 0, 0, 1, 0))[:, :blocks]
    band = torch.cat([before, own], dim=2).view(rows * blocks, 2 * window, width)
    near = torch.bmm(q.view(rows * blocks, window * heads, width), band.mT)
    near = near.view(rows, tokens, heads, 2 * window)
    far = entries = allowed = indexer = None
    ratio = 0
    if (made := attn.compressor) is not None:
        ratio = made.compress_rate
        turns = cos[:, ::ratio], sin[:, ::ratio]
        entries = parts.pooled(
            made.kv_proj(x), made.gate_proj(x), made.position_bias, made.kv_norm.weight,
            *turns, eps, rounded,
        )  # fmt: skip
        far = torch.bmm(q.view(rows, tokens * heads, width), entries.mT)
        far = far.view(rows, tokens, heads, -1)
        indexer = getattr(made, "indexer", None)
        if indexer is not None:
            _score(indexer, x, qr, head_cos, head_sin, turns, parts, eps)
            allowed = _chosen(indexer)
    near, far = parts.looks(near, far, allowed, attn.sinks, attn.scaling, ratio)
    out = torch.bmm(near.view(rows * blocks, window * heads, 2 * window), band)
    out = out.view(rows, tokens * heads, width)
    if far is not None:
        out = torch.baddbmm(out, far.view(rows, tokens * heads, -1), entries)
        if indexer is not None:
            indexer.divergence = parts.index_loss(indexer.scores, far.detach())
            _note_mass(indexer, far[:, -1].detach())
    out = parts.turned(out.view(count, heads, width), head_cos, -head_sin)
    grouped = attn.o_a_proj(out.view(count, attn.config.o_groups, -1)).flatten(1)
    projected: Tensor = attn.o_b_proj(grouped)
    return projected


def _score(
    indexer: Any, x: Tensor, qr: Tensor, cos: Tensor, sin: Tensor, turns: tuple[Tensor, Tensor],
    parts: Parts, eps: float,
) -> None:  # fmt: skip
    """Leave `scores` [B, S, entries] on the indexer, which learns from them alone."""
    rows, tokens, _ = x.shape
    x, qr = x.detach(), qr.detach()
    heads, width = indexer.num_heads, indexer.head_dim
    keys = parts.pooled(
        indexer.kv_proj(x), indexer.gate_proj(x), indexer.position_bias, indexer.kv_norm.weight,
        *turns, eps, False,
    )  # fmt: skip
    asked = parts.turned(indexer.q_b_proj(qr).view(rows * tokens, heads, width), cos, sin)
    products = torch.bmm(asked.view(rows, tokens * heads, width), keys.mT)
    products = products.view(rows, tokens, heads, -1)
    weights = indexer.scorer.weights_proj(x)
    scale = width**-0.5 * heads**-0.5
    indexer.scores = parts.index_scores(products, weights, scale, indexer.compress_rate)


def _chosen(indexer: Any) -> Tensor | None:
    """[B, S, entries] of what queries may see; None where that is all that is closed."""
    scores: Tensor = indexer.scores.detach()
    if not indexer.sparse or indexer.index_topk >= scores.shape[-1]:
        return None
    best = scores.topk(indexer.index_topk, dim=-1).indices
    chosen = torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, best, True)
    return chosen & (scores > _CLOSED)


_CLOSED = -1e29  # what is not closed is below it


def _note_mass(indexer: Any, looked: Tensor) -> None:
    """How much of the last queries' look [B, H, E] the best `shipped_topk` entries hold."""
    total = looked.float().sum(dim=1)
    scores = indexer.scores[:, -1].detach()
    best = scores.topk(min(indexer.shipped_topk, scores.shape[-1]), dim=-1).indices
    share = total / total.sum(-1, keepdim=True).clamp_min(1e-9)
    indexer.mass = share.gather(-1, best).sum(dim=-1).mean()


def _experts(mlp: Any, x: Tensor, input_ids: Tensor, parts: Parts) -> Tensor:
    """x [N, D] through the routed experts and the shared one."""
    router, experts, shared = mlp.gate, mlp.experts, mlp.shared_experts
    _, shares, chosen = router(x, input_ids) if mlp.is_hash else router(x)
    limit = experts.limit
    order = torch.sort(chosen.reshape(-1)).indices
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order), device=order.device)
    ends = router.load.cumsum(0).to(torch.int32)  # counted of the same choice
    places = place.view(chosen.shape)
    to_experts = _Spread.apply(x, order // chosen.shape[-1], places, parts)
    both = nn.functional.grouped_mm(to_experts, experts.gate_up_proj.mT, offs=ends)
    y = parts.gated(both, shares.reshape(-1).gather(0, order), limit)
    y = nn.functional.grouped_mm(y, experts.down_proj.mT, offs=ends)
    routed: Tensor = _Gather.apply(y, order // chosen.shape[-1], places, parts)
    both = torch.cat([shared.gate_proj(x), shared.up_proj(x)], dim=-1)
    return routed + shared.down_proj(parts.gated(both, None, shared.limit))


class _Spread(torch.autograd.Function):  # type: ignore[misc]
    """x [N, D] → the rows [N k, D] that the experts read, sorted by expert."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, tokens: Tensor, places: Tensor, parts: Parts) -> Tensor:
        ctx.save_for_backward(places)
        ctx.parts = parts
        return x[tokens]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        (places,) = ctx.saved_tensors
        return ctx.parts.summed(gradients[0], places), None, None, None


class _Gather(torch.autograd.Function):  # type: ignore[misc]
    """Rows [N k, D] sorted by expert → the sum [N, D] of each token's."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, tokens: Tensor, places: Tensor, parts: Parts) -> Tensor:
        ctx.save_for_backward(tokens)
        summed: Tensor = parts.summed(rows, places)
        return summed

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        (tokens,) = ctx.saved_tensors
        return gradients[0][tokens], None, None, None
