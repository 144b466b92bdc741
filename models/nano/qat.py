"""Quantization as training sees it: the nearest weights that IQ2_XXS and Q2_K can hold.

Works on whole stacks at once, on a GPU in a fraction of a second. Blocks are rows' runs of 256, as
in the file. The scales are rounded as the format keeps them, so that what comes out is exactly
representable; `pack` writes these very codes into the file's blocks.
"""

from collections.abc import Callable
from functools import cache
from typing import NamedTuple, TypeVar

import torch
from ds4_daemon.model.quant import codes

BLOCK = 256
_GROUP = 32  # of an IQ2_XXS block, with one 4-bit scale
_RUN = 8  # weights with one codeword
_TRIALS = torch.linspace(0.62, 1.38, 13)  # of a group's scale, around the first guess
_LARGEST_CODE = 31 / 8  # (0.5 + 15) / 4, by which a block's d scales its grid
_CHUNK_BLOCKS = 4096  # at a time: what bounds memory
_Q2_GROUP = 16
_Q2_ROUNDS = 4


class Iq2Xxs(NamedTuple):
    """Codes of N blocks."""

    d: torch.Tensor  # [N, 1], each exactly a half
    scale: torch.Tensor  # [N, 8], 0 to 15, of groups of 32
    index: torch.Tensor  # [N, 8, 4], the codewords of runs of 8
    sign: torch.Tensor  # [N, 8, 4, 8], 1 or -1; an even number of -1 in each run

    def values(self) -> torch.Tensor:
        """[N, 256] float32."""
        step = self.d * (0.5 + self.scale) * 0.25
        values = _grid(self.d.device)[self.index] * step[..., None, None] * self.sign
        return values.view(-1, BLOCK)


class Q2K(NamedTuple):
    """Codes of N blocks."""

    d: torch.Tensor  # [N, 1], each exactly a half
    d_min: torch.Tensor  # [N, 1], likewise
    scale: torch.Tensor  # [N, 16], 0 to 15, of groups of 16
    minimum: torch.Tensor  # [N, 16], likewise
    q: torch.Tensor  # [N, 16, 16], 0 to 3

    def values(self) -> torch.Tensor:
        """[N, 256] float32."""
        s, m = self.d * self.scale, self.d_min * self.minimum
        return (s[..., None] * self.q - m[..., None]).view(-1, BLOCK)


Codes = TypeVar("Codes", Iq2Xxs, Q2K)


def iq2_xxs(weights: torch.Tensor, importance: torch.Tensor | None = None) -> torch.Tensor:
    """(..., columns) → the same shape, as IQ2_XXS would hold it; importance: one a column."""
    found = _by_blocks(_iq2_xxs_blocks, weights, importance)
    return torch.cat([codes.values() for codes in found]).view(weights.shape)


def q2_k(weights: torch.Tensor, importance: torch.Tensor | None = None) -> torch.Tensor:
    """(..., columns) → the same shape, as Q2_K would hold it; importance: one a column."""
    found = _by_blocks(_q2_k_blocks, weights, importance)
    return torch.cat([codes.values() for codes in found]).view(weights.shape)


def iq2_xxs_codes(weights: torch.Tensor) -> Iq2Xxs:
    """(..., columns) → the codes of `iq2_xxs`'s values, blocks in the order of the weights."""
    found = zip(*_by_blocks(_iq2_xxs_blocks, weights, None), strict=True)
    return Iq2Xxs(*(torch.cat(parts) for parts in found))


def q2_k_codes(weights: torch.Tensor) -> Q2K:
    """(..., columns) → the codes of `q2_k`'s values, blocks in the order of the weights."""
    found = zip(*_by_blocks(_q2_k_blocks, weights, None), strict=True)
    return Q2K(*(torch.cat(parts) for parts in found))


def projected(name: str, weights: torch.Tensor) -> torch.Tensor:
    """A stack of routed experts as the shipped file holds it: gate and up IQ2_XXS, down Q2_K."""
    return (q2_k if name.endswith("down_proj") else iq2_xxs)(weights)


def noisy(name: str, weights: torch.Tensor) -> torch.Tensor:
    """The fallback: noise of the size that quantization's error has."""
    share = 0.27 if name.endswith("down_proj") else 0.34
    return weights + torch.randn_like(weights) * (share * weights.square().mean().sqrt())


def _by_blocks(
    project: Callable[[torch.Tensor, torch.Tensor], Codes],
    weights: torch.Tensor,
    importance: torch.Tensor | None,
) -> list[Codes]:
    x = weights.float().reshape(-1, BLOCK)
    if importance is None:
        w = torch.ones(1, BLOCK, device=x.device).expand_as(x)
    else:
        w = importance.float().expand(weights.shape).reshape(-1, BLOCK)
    pieces = zip(x.split(_CHUNK_BLOCKS), w.split(_CHUNK_BLOCKS), strict=True)
    with torch.no_grad():
        return [project(a, b) for a, b in pieces]


@cache
def _grid(device: torch.device) -> torch.Tensor:
    return torch.tensor(codes.iq2_grid().copy(), device=device)  # [256, 8] of 8, 25, 43


def _iq2_xxs_blocks(x: torch.Tensor, importance: torch.Tensor) -> Iq2Xxs:
    blocks = len(x)
    sigma = x.square().mean(dim=-1, keepdim=True)
    weight = importance * torch.sqrt(sigma + x.square())  # ggml's: large weights matter more
    runs = x.view(-1, _RUN)
    w = weight.reshape(-1, _RUN)
    sign = torch.where(runs < 0, -1.0, 1.0)
    odd = (runs < 0).sum(dim=-1, keepdim=True) % 2
    least = (w * runs.square()).argmin(dim=-1, keepdim=True)
    sign = sign.scatter(-1, least, sign.gather(-1, least) * (1 - 2 * odd))
    runs = (runs * sign).view(blocks, BLOCK // _GROUP, -1, _RUN)  # magnitudes; one may be negative
    w = w.view_as(runs)
    largest = runs.abs().amax(dim=(-1, -2)).clamp_min(1e-20)
    best = torch.full_like(largest, float("inf"))
    scale = torch.zeros_like(largest)
    for trial in _TRIALS.tolist():
        guess = trial * largest / 43
        q = _grid(x.device)[_codewords(runs, w, guess)]
        top = (w * runs * q).sum(dim=(-1, -2))
        fitted = (top / (w * q.square()).sum(dim=(-1, -2))).clamp_min(0)
        error = -fitted * top
        better = error < best
        best = torch.where(better, error, best)
        scale = torch.where(better, fitted, scale)
    # The block's d is a half, a group's scale d * (0.5 + code) / 4.
    d = (scale.amax(dim=-1, keepdim=True) / _LARGEST_CODE).half().float().clamp_min(2.0**-24)
    code = torch.round(scale / d * 4 - 0.5).clamp(0, 15)
    step = d * (0.5 + code) * 0.25
    return Iq2Xxs(d, code, _codewords(runs, w, step), sign.view_as(runs))


def _codewords(runs: torch.Tensor, w: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """The number of every run's weighted-nearest codeword at its group's scale."""
    grid = _grid(runs.device)
    target = runs / scale.clamp_min(1e-20)[..., None, None]
    # |t - q|² less what does not depend on q, as one matrix product.
    left = torch.cat([w * target, w], dim=-1).view(-1, 2 * _RUN)
    right = torch.cat([-2 * grid, grid.square()], dim=-1)
    return (left @ right.T).argmin(dim=-1).view(runs.shape[:-1])


def _q2_k_blocks(x: torch.Tensor, importance: torch.Tensor) -> Q2K:
    blocks = len(x)
    groups = x.view(blocks, BLOCK // _Q2_GROUP, _Q2_GROUP)
    sigma = x.square().mean(dim=-1, keepdim=True)
    w = (importance * torch.sqrt(sigma + x.square())).view_as(groups)
    low = groups.amin(dim=-1).clamp_max(0)
    high = groups.amax(dim=-1)
    best = torch.full_like(low, float("inf"))
    scale, minimum = torch.zeros_like(low), -low
    for shrink in torch.linspace(0.55, 1.05, 11).tolist():
        s = ((high - low) * shrink / 3).clamp_min(1e-20)
        m = -low * shrink
        for _ in range(_Q2_ROUNDS):
            q = torch.round((groups + m[..., None]) / s[..., None]).clamp(0, 3)
            s, m = _line(groups, q, w)
        q = torch.round((groups + m[..., None]) / s[..., None]).clamp(0, 3)
        error = (w * (s[..., None] * q - m[..., None] - groups).square()).sum(dim=-1)
        better = error < best
        best = torch.where(better, error, best)
        scale, minimum = torch.where(better, s, scale), torch.where(better, m, minimum)
    # Scales and minima are 4-bit multiples of a half each.
    d = (scale.amax(dim=-1, keepdim=True) / 15).half().float().clamp_min(2.0**-24)
    d_min = (minimum.amax(dim=-1, keepdim=True) / 15).half().float().clamp_min(2.0**-24)
    scale = torch.round(scale / d).clamp(0, 15)
    minimum = torch.round(minimum / d_min).clamp(0, 15)
    m = (d_min * minimum)[..., None]
    safe = (d * scale).clamp_min(1e-20)[..., None]
    q = torch.round((groups + m) / safe).clamp(0, 3) + 0.0  # no minus zero: the file has none
    return Q2K(d, d_min, scale, minimum, q)


def _line(x: torch.Tensor, q: torch.Tensor, w: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Least squares x = s q - m with s > 0 and m >= 0, by groups."""
    total, wq, wx = w.sum(-1), (w * q).sum(-1), (w * x).sum(-1)
    wqq, wqx = (w * q * q).sum(-1), (w * q * x).sum(-1)
    spread = total * wqq - wq * wq
    s = (total * wqx - wq * wx) / spread.clamp_min(1e-30)
    m = (s * wq - wx) / total
    s = torch.where(m < 0, wqx / wqq.clamp_min(1e-30), s).clamp_min(1e-20)
    return s, m.clamp_min(0)
