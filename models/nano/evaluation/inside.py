"""What the network does inside: how evenly experts are used, and what the indexer's choice holds.

Runs the trainer's network (float32, every entry visible) over held-out text, because that one keeps
what is asked for here. The mass of an indexer's top k is the share of the heads' summed attention
over all closed entries that falls on the k entries it scores highest, over every SPACING-th query
that sees more than k of them. Slow: a row of 8,192 tokens takes a minute of one core.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from models.nano import attention
from models.nano.export import trainee_of

NAME = "ds4_watched"
TOP_K = (64, 128, 256, 512)
SPACING = 61  # no multiple of a ratio, so that queries stand at every phase of a window


class Watch:
    """Collects masses while a network runs, by (layer, k)."""

    def __init__(self, top_k: Sequence[int]) -> None:
        self.masses: dict[tuple[int, int], list[torch.Tensor]] = {}
        self._top_k = top_k
        ALL_ATTENTION_FUNCTIONS.register(NAME, self._attend)

    def _attend(
        self, module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor,
        attention_mask: torch.Tensor | None, scaling: float, **more: Any,
    ) -> tuple[torch.Tensor, None]:  # fmt: skip
        indexer = getattr(module.compressor, "indexer", None)
        if indexer is not None:
            self._look(module, indexer, query[0], key[0, 0], scaling)
        return attention.chunked(module, query, key, value, attention_mask, scaling, **more)

    def _look(
        self, module: Any, indexer: Any, query: torch.Tensor, key: torch.Tensor, scaling: float
    ) -> None:
        """query [H, S, D] and key [S + entries, D] of one row."""
        tokens, window = query.shape[1], module.sliding_window
        at = torch.arange(SPACING, tokens, SPACING)
        scores = torch.einsum("hqd,kd->hqk", query[:, at], key) * scaling
        own = torch.arange(tokens)
        near = (own <= at[:, None]) & (own > at[:, None] - window)
        closed = indexer.scores[0, at] > attention.HIDDEN / 2  # [Q, entries]
        scores = scores.masked_fill(~torch.cat([near, closed], dim=1), float("-inf"))
        sink = module.sinks.view(-1, 1, 1).expand(-1, len(at), 1)
        weights = torch.softmax(torch.cat([scores, sink], dim=-1), dim=-1)
        self.note(module.layer_idx, weights[:, :, tokens:-1].sum(dim=0), indexer.scores[0, at])

    def note(self, layer: int, looked: torch.Tensor, scores: torch.Tensor) -> None:
        """looked [Q, entries]: attention; scores [Q, entries]: the indexer's, hidden ones low."""
        visible = (scores > attention.HIDDEN / 2).sum(dim=1)
        for k in self._top_k:
            some = visible > k
            if some.any():
                best = scores[some].topk(k, dim=-1).indices
                share = looked[some].gather(-1, best).sum(dim=-1) / looked[some].sum(dim=-1)
                self.masses.setdefault((layer, k), []).append(share)

    def means(self) -> dict[str, dict[str, float]]:
        """By layer, then by k: the mean share, and over how many queries."""
        out: dict[str, dict[str, float]] = {}
        for (layer, k), shares in sorted(self.masses.items()):
            row = out.setdefault(str(layer), {})
            row[str(k)] = float(torch.cat(shares).mean())
            row[f"n_{k}"] = sum(map(len, shares))
        return out


def measure(
    parent: Path, rows: Sequence[Sequence[int]], top_k: Sequence[int] = TOP_K
) -> dict[str, Any]:
    """Over rows of ids, each cut to a multiple of 128 tokens: `mass` by indexer's layer and k, and
    `load` by layer: the most and least used expert's tokens over the mean."""
    trainee = trainee_of(parent)
    trainee.choose_sparsely(False)
    watch = Watch(top_k)
    trainee.net.config._attn_implementation = NAME
    window = trainee.config.sliding_window
    loads: list[torch.Tensor] = []
    tokens = 0
    with torch.no_grad():
        for row in rows:
            kept = row[: len(row) // window * window]
            trainee.hidden(torch.tensor([kept]))
            tokens += len(kept)
            found = trainee.loads()
            loads = [a + b for a, b in zip(loads, found, strict=True)] if loads else found
    load = {
        str(layer): {
            "max": float(of.max() / of.mean()), "min": float(of.min() / of.mean())
        }
        for layer, of in enumerate(loads)
    }  # fmt: skip
    return {"tokens": tokens, "load": load, "mass": watch.means()}
