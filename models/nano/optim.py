"""Muon and AdamW over float32 masters of a bf16 model.

Matrices inside the layers are moved by Muon: momentum, orthogonalized by Newton-Schulz iterations
(Jordan et al. 2024), scaled so that a step is as large as AdamW's (Liu et al. 2025, "Muon is
scalable for LLM training", equation 4). Embedding, head, routers and everything small is AdamW's.
Gradients of micro-batches are summed in float32. After a step the model's weights are the masters'
rounding, plus what `shift` holds for a weight: the way quantization-aware training moves it.
"""

from collections.abc import Mapping
from typing import Any

import torch

MATRIX_RATE = 5e-3
SMALL_RATE = 3e-4  # hyper-connections, sinks, norms, biases: no decay
DECAY = 0.1
_SMALL = ("_hc.", ".hc_head.", "sinks", "norm.weight", "position_bias")
_NOT_ORTHOGONAL = ("embed_tokens", "lm_head", ".mlp.gate.", ".scorer.")
_MOMENTUM = 0.95
_STEP_SIZE = 0.2  # root mean square of AdamW's steps in practice
_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # steep at zero: five rounds take all to about one
_ROUNDS = 5


class Optimizer:
    """The masters and their moments; names are those of the model's parameters."""

    def __init__(
        self, net: torch.nn.Module, matrix_rate: float = MATRIX_RATE, orthogonal: bool = True
    ) -> None:
        self._params = dict(net.named_parameters())
        self._matrix_rate = matrix_rate
        self.masters = {n: p.detach().float().clone() for n, p in self._params.items()}
        for master in self.masters.values():
            master.grad = torch.zeros_like(master)
        self.shift: dict[str, torch.Tensor] = {}
        self._momenta: dict[str, torch.Tensor] = {}
        groups: tuple[list[torch.Tensor], list[torch.Tensor]] = ([], [])
        for name, master in self.masters.items():
            small = any(part in name for part in _SMALL)
            if orthogonal and not small and not any(part in name for part in _NOT_ORTHOGONAL):
                self._momenta[name] = torch.zeros_like(master)
            else:
                groups[small].append(master)
        on_gpu = next(iter(self.masters.values())).is_cuda
        self._adam: Any = torch.optim.AdamW(
            [
                {"params": groups[0], "lr": matrix_rate, "weight_decay": DECAY},
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

    def gradients(self) -> list[torch.Tensor]:
        """What `collect` has summed, by master; may be changed in place."""
        return [master.grad for master in self.masters.values() if master.grad is not None]

    def step(self, rate: float) -> torch.Tensor:
        """One step at `rate` of the peak learning rates; returns the gradient's norm.

        A gradient that is not finite moves nothing: its norm says so.
        """
        masters = list(self.masters.values())
        norm = torch.nn.utils.clip_grad_norm_(masters, 1.0)
        finite = norm.isfinite()  # asked on the device: nothing waits for the answer
        for master in masters:
            master.grad = torch.where(finite, master.grad, 0.0)
        for group, peak in zip(
            self._adam.param_groups, (self._matrix_rate, SMALL_RATE), strict=True
        ):
            group["lr"] = peak * rate
        self._adam.step()
        self._step_matrices(self._matrix_rate * rate)
        torch._foreach_zero_([master.grad for master in masters])
        self.write()
        return norm

    def _step_matrices(self, rate: float) -> None:
        by_shape: dict[torch.Size, list[str]] = {}
        for name in self._momenta:
            by_shape.setdefault(self.masters[name].shape[-2:], []).append(name)
        with torch.no_grad():
            for shape, names in by_shape.items():
                momenta = [self._momenta[name] for name in names]
                gradients = [self.masters[name].grad for name in names]
                torch._foreach_lerp_(momenta, gradients, 1 - _MOMENTUM)
                ahead = torch._foreach_lerp(gradients, momenta, _MOMENTUM)
                updates = orthogonalized(torch.cat([a.reshape(-1, *shape) for a in ahead]))
                counts = [a.numel() // shape.numel() for a in ahead]
                scale = rate * _STEP_SIZE * max(shape) ** 0.5
                masters = [self.masters[name] for name in names]
                torch._foreach_mul_(masters, 1 - rate * DECAY)
                for master, update in zip(masters, updates.split(counts), strict=True):
                    master.add_(update.view_as(master), alpha=-scale)

    def write(self) -> None:
        """The masters, shifted, to the model."""
        with torch.no_grad():
            values = [m + self.shift[n] if n in self.shift else m for n, m in self.masters.items()]
            torch._foreach_copy_(list(self._params.values()), values)

    def moments(self) -> dict[str, torch.Tensor]:
        """For a checkpoint: Muon's momenta, and both moments and the step of AdamW's masters."""
        out = {f"{name}/momentum": m.detach().clone() for name, m in self._momenta.items()}
        for name, master in self.masters.items():
            for key, value in self._adam.state.get(master, {}).items():
                out[f"{name}/{key}"] = value.detach().clone()
        return out

    def load(
        self, masters: Mapping[str, torch.Tensor], moments: Mapping[str, torch.Tensor]
    ) -> None:
        """Take up a checkpoint's masters, and its moments as far as there are any."""
        with torch.no_grad():
            for name, master in self.masters.items():
                master.copy_(masters[name])
                if f"{name}/momentum" in moments:
                    self._momenta[name].copy_(moments[f"{name}/momentum"])
                keys = [k for k in moments if k.rpartition("/")[0] == name
                        and name not in self._momenta]  # fmt: skip
                if keys:
                    self._adam.state[master] = {
                        key.rpartition("/")[2]: moments[key].to(
                            "cpu" if key.endswith("/step") and not master.is_cuda else master.device
                        ).clone()
                        for key in keys
                    }  # fmt: skip
            self.write()


def orthogonalized(x: torch.Tensor) -> torch.Tensor:
    """x [N, rows, columns] → about U Vᵀ of each, singular values between 0.7 and 1.2."""
    tall = x.shape[-2] > x.shape[-1]
    x = x.bfloat16() if x.is_cuda else x
    x = x.mT if tall else x
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    a, b, c = _NEWTON_SCHULZ
    for _ in range(_ROUNDS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.mT if tall else x).float()
