"""The importance matrix: how strongly calibration text drives every input of every expert.

Mean squares of an expert's inputs, by column, with the trainer's network in float32: of what gate
and up read, and of what down reads. An expert that no token chose gets its layer's mean.
"""

from types import MethodType
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from models.nano.model import Trainee

Floats = npt.NDArray[np.float32]


class Importance(NamedTuple):
    """[experts, columns] each, of one layer."""

    gate_up: Floats
    down: Floats


def measure(trainee: Trainee, rows: list[torch.Tensor]) -> list[Importance]:
    """Of every layer, over `rows` of ids [B, S]."""
    with torch.no_grad():
        layers = [layer.mlp.experts for layer in trainee.net.model.layers]
        for experts in layers:
            experts.sums = [torch.zeros(0)] * 3
            experts.plain_forward = experts.forward
            experts.forward = MethodType(_counting_forward, experts)
        for ids in rows:
            trainee.hidden(ids)
        out = []
        for experts in layers:
            count, read, between = experts.sums
            experts.forward = experts.plain_forward
            out.append(Importance(_means(read, count), _means(between, count)))
        return out


def _means(sums: torch.Tensor, count: torch.Tensor) -> Floats:
    means = sums / count.clamp_min(1)
    overall = sums.sum(dim=0, keepdim=True) / count.sum()
    result: Floats = torch.where(count > 0, means, overall).cpu().numpy()
    return result


def _counting_forward(
    self: Any, hidden_states: torch.Tensor, index: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    out = torch.zeros_like(hidden_states)
    count, read, between = [], [], []
    for expert in range(self.num_experts):
        token, place = torch.where(index == expert)
        x = hidden_states[token]
        h = self._apply_gate(nn.functional.linear(x, self.gate_up_proj[expert]))
        y = nn.functional.linear(h, self.down_proj[expert]) * weights[token, place, None]
        out.index_add_(0, token, y.to(out.dtype))
        count.append(torch.tensor([float(len(token))], device=x.device))
        read.append(x.square().sum(dim=0))
        between.append(h.square().sum(dim=0))
    new = [torch.stack(values) for values in (count, read, between)]
    self.sums = [a + b if len(a) else b for a, b in zip(self.sums, new, strict=True)]
    return out
