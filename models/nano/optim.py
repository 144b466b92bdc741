"""AdamW over float32 masters of a bf16 model, in the two groups of the recipe.

Gradients of micro-batches are summed in float32. After a step the model's weights are the masters'
rounding, plus what `shift` holds for a weight: the way quantization-aware training moves it.
"""

from collections.abc import Mapping
from typing import Any

import torch

MATRIX_RATE = 3e-3
SMALL_RATE = 3e-4  # hyper-connections, sinks, norms, biases: no decay
_SMALL = ("_hc.", ".hc_head.", "sinks", "norm.weight", "position_bias")


class Optimizer:
    """The masters and their moments; names are those of the model's parameters."""

    def __init__(self, net: torch.nn.Module) -> None:
        self._params = dict(net.named_parameters())
        self.masters = {n: p.detach().float().clone() for n, p in self._params.items()}
        for master in self.masters.values():
            master.grad = torch.zeros_like(master)
        self.shift: dict[str, torch.Tensor] = {}
        groups: tuple[list[torch.Tensor], list[torch.Tensor]] = ([], [])
        for name, master in self.masters.items():
            groups[any(part in name for part in _SMALL)].append(master)
        on_gpu = next(iter(self.masters.values())).is_cuda
        self._adam: Any = torch.optim.AdamW(
            [
                {"params": groups[0], "lr": MATRIX_RATE, "weight_decay": 0.1},
                {"params": groups[1], "lr": SMALL_RATE, "weight_decay": 0.0},
            ],
            betas=(0.9, 0.95),
            fused=on_gpu,
        )

    def collect(self) -> None:
        """Add the model's gradients to the masters'."""
        with torch.no_grad():
            have = [(self.masters[n].grad, p.grad) for n, p in self._params.items()
                    if p.grad is not None]  # fmt: skip
            torch._foreach_add_([m for m, _ in have], [g.float() for _, g in have])
            for parameter in self._params.values():
                parameter.grad = None

    def step(self, rate: float) -> torch.Tensor:
        """One step at `rate` of the peak learning rates; returns the gradient's norm."""
        norm = torch.nn.utils.clip_grad_norm_(self.masters.values(), 1.0)
        for group, peak in zip(self._adam.param_groups, (MATRIX_RATE, SMALL_RATE), strict=True):
            group["lr"] = peak * rate
        self._adam.step()
        torch._foreach_zero_([master.grad for master in self.masters.values()])
        self.write()
        return norm

    def write(self) -> None:
        """The masters, shifted, to the model."""
        with torch.no_grad():
            values = [m + self.shift[n] if n in self.shift else m for n, m in self.masters.items()]
            torch._foreach_copy_(list(self._params.values()), values)

    def moments(self) -> dict[str, torch.Tensor]:
        """For a checkpoint: both moments and the step of every master that has had one."""
        out = {}
        for name, master in self.masters.items():
            for key, value in self._adam.state.get(master, {}).items():
                out[f"{name}/{key}"] = value.detach().clone()
        return out

    def load(
        self, masters: Mapping[str, torch.Tensor], moments: Mapping[str, torch.Tensor]
    ) -> None:
        """Take up a checkpoint's masters and moments."""
        with torch.no_grad():
            for name, master in self.masters.items():
                master.copy_(masters[name])
                keys = [k for k in moments if k.rpartition("/")[0] == name]
                if keys:
                    self._adam.state[master] = {
                        key.rpartition("/")[2]: moments[key].to(
                            "cpu" if key.endswith("/step") and not master.is_cuda else master.device
                        ).clone()
                        for key in keys
                    }  # fmt: skip
            self.write()
