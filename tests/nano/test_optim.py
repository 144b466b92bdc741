"""The trainer's optimizer and its probes on small tensors."""

import torch

from models.nano import probes
from models.nano.optim import Optimizer, orthogonalized


class Net(torch.nn.Module):  # type: ignore[misc]
    """A matrix for Muon and an embedding for AdamW."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.proj = torch.nn.Linear(8, 24, bias=False)
        self.embed_tokens = torch.nn.Embedding(5, 8)

    def hidden(self, ids: torch.Tensor) -> torch.Tensor:
        # At each place the next id, as a vector.
        return torch.nn.functional.one_hot((ids + 1) % 9, 9).float()


def test_orthogonalized_keeps_directions_and_levels_sizes() -> None:
    """Singular values come close to one, singular vectors stay, for wide and for tall matrices."""
    torch.manual_seed(1)
    for shape in ((2, 16, 48), (2, 48, 16)):
        x = torch.randn(shape)
        u, _, v = torch.linalg.svd(x, full_matrices=False)
        y = orthogonalized(x)
        inner = u.mT @ y @ v.mT
        sizes = inner.diagonal(dim1=-2, dim2=-1)
        assert sizes.min() > 0.6 and sizes.max() < 1.3
        assert (inner - torch.diag_embed(sizes)).abs().max() < 1e-3


def test_a_gradient_that_is_not_finite_moves_only_by_decay() -> None:
    """One bad batch cannot ruin the weights or the momenta."""
    net = Net()
    optimizer = Optimizer(net)
    before = {n: m.clone() for n, m in optimizer.masters.items()}
    net.proj.weight.grad = torch.full_like(net.proj.weight, float("nan"))
    net.embed_tokens.weight.grad = torch.ones_like(net.embed_tokens.weight)
    optimizer.collect()
    norm = optimizer.step(1.0)
    assert not norm.isfinite()
    for name, master in optimizer.masters.items():
        torch.testing.assert_close(master, before[name], rtol=1e-3, atol=0)
    assert all(torch.isfinite(m).all() for m in optimizer.moments().values())


def test_moments_come_back() -> None:
    """A loaded optimizer goes on as the one that was saved."""
    nets = [Net(), Net()]
    first, second = (Optimizer(net) for net in nets)

    def step(optimizer: Optimizer, net: Net, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        for parameter in net.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.collect()
        optimizer.step(0.5)

    step(first, nets[0], 1)
    second.load(first.masters, first.moments())
    for optimizer, net in zip((first, second), nets, strict=True):
        step(optimizer, net, 2)
    for name, master in first.masters.items():
        torch.testing.assert_close(master, second.masters[name], rtol=0, atol=0)


def test_probes_want_every_token_of_an_answer() -> None:
    """A case is right if each token from its start on was foreseen, and wrong if one was not."""
    net = Net()
    net.lm_head = torch.nn.Identity()
    trainee = type("T", (), {"hidden": net.hidden, "net": net, "device": torch.device("cpu")})()
    counted = probes.Probe([7, 2, 3, 4, 5], 2)
    broken = probes.Probe([7, 2, 3, 5, 6], 2)
    behind = probes.Probe([9 - 1, 4, 5, 6], 2)  # its jump lies before the answer
    assert probes._right(trainee, [counted, broken, behind]) == [True, False, True]
