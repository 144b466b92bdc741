"""The processes that train one model together, one for each GPU.

Each reads data of its own; gradients are averaged, so every process takes the same step. What is
decided by the time is decided by rank 0's clock. They are started with the usual variables (RANK,
WORLD_SIZE, MASTER_ADDR, MASTER_PORT), by torchrun or by hand; without them there is one process,
and nothing here does anything.
"""

import os
from collections.abc import Callable, Sequence
from datetime import timedelta

import torch
import torch.distributed as dist

_PATIENCE = timedelta(seconds=120)  # a rank that is silent for longer is lost, and the run ends


class Ranks:
    """This process's place among them."""

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank = rank
        self.size = size

    @classmethod
    def join(cls, device: torch.device) -> "Ranks":
        """Meet the others that the environment names. Raises if they don't come."""
        if "WORLD_SIZE" not in os.environ:
            return cls()
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=_PATIENCE)
        return cls(dist.get_rank(), dist.get_world_size())

    @property
    def first(self) -> bool:
        """Whether this one writes the log and the checkpoints."""
        return self.rank == 0

    def mean(self, tensors: Sequence[torch.Tensor]) -> None:
        """Put the mean over all ranks into each of `tensors`, which have one type."""
        if self.size > 1:
            flat = torch.cat([tensor.flatten() for tensor in tensors])
            dist.all_reduce(flat)
            _scatter(flat / self.size, tensors)

    def total(self, tensors: Sequence[torch.Tensor]) -> None:
        """Put the sum over all ranks into each of `tensors`, which have one type."""
        if self.size > 1:
            flat = torch.cat([tensor.flatten() for tensor in tensors])
            dist.all_reduce(flat)
            _scatter(flat, tensors)

    def copy(self, tensors: Sequence[torch.Tensor]) -> None:
        """Put rank 0's values into each of `tensors`."""
        if self.size > 1:
            for tensor in tensors:
                dist.broadcast(tensor, 0)

    def clock(self, clock: Callable[[int], float], device: torch.device) -> Callable[[int], float]:
        """Rank 0's `clock` for all, read once a step: all must ask at the same steps."""
        return _SharedClock(clock, device) if self.size > 1 else clock

    def leave(self) -> None:
        if self.size > 1:
            dist.destroy_process_group()


class _SharedClock:
    def __init__(self, clock: Callable[[int], float], device: torch.device) -> None:
        self._clock = clock
        self._device = device
        self._read: tuple[int, float] | None = None
        self.virtual = getattr(clock, "virtual", False)

    def __call__(self, step: int) -> float:
        if self._read is None or self._read[0] != step:
            now = torch.tensor(self._clock(step), dtype=torch.float64, device=self._device)
            dist.broadcast(now, 0)
            self._read = step, now.item()
        return self._read[1]


def _scatter(flat: torch.Tensor, tensors: Sequence[torch.Tensor]) -> None:
    pieces = flat.split([tensor.numel() for tensor in tensors])
    for tensor, piece in zip(tensors, pieces, strict=True):
        tensor.copy_(piece.view_as(tensor))
