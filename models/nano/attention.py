"""Attention for training: blocks of queries over a band of keys and all compressed entries.

It is transformers' eager attention to 1e-5, in memory that grows with the window and not with the
sequence. It also holds the indexer's loss: how far its scores are from where the heads look.
Registered as NAME; a model that uses it passes `mask(...)` and no cache.
"""

from typing import Any

import torch
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

NAME = "ds4_chunked"
HIDDEN = -1e30  # finite: minus infinity times a probability of 0 is NaN
_FP8_BLOCK = 64
_FP8_LARGEST = 448.0


def mask(rows: int, tokens: int, device: torch.device) -> dict[str, torch.Tensor]:
    """What to pass as `attention_mask`: of no width, so that the compressor's own bias is left."""
    return {"band": torch.zeros(rows, 1, tokens, 0, device=device)}


def chunked(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """query [B, H, S, D], key [B, 1, S + entries, D], which is the value too → [B, S, H, D]."""
    rows, heads, tokens, width = query.shape
    window = module.sliding_window
    if tokens % window:
        raise ValueError(f"{tokens} tokens are no multiple of the window's {window}")
    blocks = tokens // window
    key = key[:, 0]
    if getattr(module, "round_kv", False):
        key = fp8_rounded(key, width - module.rope_width)
    own, entries = key[:, :tokens], key[:, tokens:]
    own = own.view(rows, blocks, window, width)
    before = nn.functional.pad(own, (0, 0, 0, 0, 1, 0))[:, :blocks]
    band = torch.cat([before, own], dim=2)  # [B, blocks, 2 * window, D]
    asked = query.view(rows, heads, blocks, window, width)
    near = torch.einsum("bhnqd,bnkd->bhnqk", asked, band).float() * scaling
    near = near.masked_fill(~_band(window, blocks, query.device), HIDDEN)
    near = near.reshape(rows, heads, tokens, 2 * window)
    sink = module.sinks.float().view(1, heads, 1, 1).expand(rows, heads, tokens, 1)
    pieces = [near]
    if entries.shape[1]:
        far = torch.einsum("bhqd,bkd->bhqk", query, entries).float() * scaling
        if attention_mask is not None and attention_mask.shape[-1]:
            far = far + attention_mask.float().clamp_min(HIDDEN)
        pieces.append(far)
    weights = torch.softmax(torch.cat([*pieces, sink], dim=-1), dim=-1)
    near = weights[..., : 2 * window].to(query.dtype).view(rows, heads, blocks, window, -1)
    out = torch.einsum("bhnqk,bnkd->bhnqd", near, band).reshape(rows, heads, tokens, width)
    if entries.shape[1]:
        far = weights[..., 2 * window : -1]
        out = out + torch.einsum("bhqk,bkd->bhqd", far.to(query.dtype), entries)
        _indexer_loss(module, far.detach())
    return out.transpose(1, 2).contiguous(), None


def _band(window: int, blocks: int, device: torch.device) -> torch.Tensor:
    """[blocks, window, 2 * window]: which keys of the last and its own block a query sees."""
    q = torch.arange(window, device=device).view(1, -1, 1)
    k = torch.arange(2 * window, device=device).view(1, 1, -1)
    block = torch.arange(blocks, device=device).view(-1, 1, 1)
    return (k > q) & (k <= q + window) & ((block > 0) | (k >= window))


def _indexer_loss(module: Any, far: torch.Tensor) -> None:
    """Leave KL(heads' attention over the entries || the indexer's) on the indexer, with the mass
    that its best `shipped_topk` entries hold."""
    indexer = getattr(module.compressor, "indexer", None)
    if indexer is None:
        return
    scores = indexer.scores  # [B, S, entries], hidden ones at HIDDEN
    looked = far.sum(dim=1)
    mass = looked.sum(dim=-1, keepdim=True)
    target = looked / mass.clamp_min(1e-9)
    guess = torch.log_softmax(scores, dim=-1)
    divergence = (target * (target.clamp_min(1e-9).log() - guess)).sum(dim=-1)
    seen = (scores[..., 0] > HIDDEN / 2) & (mass[..., 0] > 1e-6)
    indexer.divergence = (divergence * seen).sum() / seen.sum().clamp_min(1)
    with torch.no_grad():
        count = min(indexer.shipped_topk, scores.shape[-1])
        best = scores[:, -1].topk(count, dim=-1).indices  # of the last query, which sees all
        indexer.mass = target[:, -1].gather(-1, best).sum(dim=-1).mean()


def fp8_rounded(values: torch.Tensor, unrotated: int) -> torch.Tensor:
    """E4M3 there and back in blocks of 64, for the unrotated channels; the gradient passes."""
    with torch.no_grad():
        nope = values[..., :unrotated].float()
        blocks = nope.unflatten(-1, (-1, _FP8_BLOCK))
        largest = blocks.abs().amax(dim=-1, keepdim=True).clamp_min(1e-4)
        scale = torch.exp2(torch.ceil(torch.log2(largest / _FP8_LARGEST)))
        rounded = (blocks / scale).to(torch.float8_e4m3fn).float() * scale
        change = nn.functional.pad(rounded.flatten(-2) - nope, (0, values.shape[-1] - unrotated))
    return values + change.to(values.dtype)


ALL_ATTENTION_FUNCTIONS.register(NAME, chunked)
