"""The trainer's quick forward against transformers' modules, forwards and backwards."""

from dataclasses import replace

import pytest
import torch
from ds4_daemon.model.config import ModelConfig

from models.nano.model import Trainee
from models.nano.parts import Parts, looks
from tests.nano.test_train import CONFIG, CPU, ROW

_ROWS = 2


def _both(config: ModelConfig, rounded: bool) -> tuple[Trainee, Trainee]:
    """The same random weights in transformers' modules and in the fused forward."""
    reference = Trainee(config, CPU, 1, bf16=False)
    fused = Trainee(config, CPU, 1, bf16=False, compiled="parts")
    assert fused.parts is not None
    fused.parts.compiled = False  # the functions are the same; compiling all takes minutes
    noise = torch.Generator().manual_seed(3)
    state = {
        name: value + 0.02 * torch.randn(value.shape, generator=noise)
        if value.is_floating_point() else value
        for name, value in reference.net.state_dict().items()
    }  # fmt: skip
    for one in (reference, fused):
        one.net.load_state_dict(state)
        one.round_kv(rounded)
    return reference, fused


@pytest.mark.parametrize("sparse", [False, True])
def test_losses_and_gradients_are_those_of_the_modules(sparse: bool) -> None:
    """Every token's loss, the indexers' divergence, the experts' load and every weight's gradient,
    with all entries seen and with those that the indexer chooses."""
    reference, fused = _both(CONFIG if sparse else replace(CONFIG, index_topk=ROW), rounded=False)
    draw = torch.Generator().manual_seed(4)
    shape = (_ROWS, 2 * ROW)
    ids, targets = (torch.randint(CONFIG.vocab_size, shape, generator=draw) for _ in range(2))
    found = []
    for one in (reference, fused):
        one.choose_sparsely(sparse)
        losses, divergence = one.losses(ids, targets)
        (losses.mean() + divergence).backward()
        masses = [indexer.mass for indexer in one.indexers]
        found.append((losses.detach(), divergence.detach(), *one.loads(), *masses))
    for expected, got in zip(*found, strict=True):
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)
    theirs = dict(fused.net.named_parameters())
    for name, parameter in reference.net.named_parameters():
        assert parameter.grad is not None, name
        other = theirs[name].grad
        assert other is not None, name
        apart = (other - parameter.grad).norm() / parameter.grad.norm().clamp_min(1e-9)
        assert apart < 1e-3, (name, float(apart))


def test_keys_are_rounded_as_the_modules_round_them() -> None:
    """With FP8 keys losses agree but for single values that stand at a rounding boundary."""
    reference, fused = _both(CONFIG, rounded=True)
    unrounded, _ = _both(CONFIG, rounded=False)
    ids = torch.randint(CONFIG.vocab_size, (1, ROW), generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        expected, got, without = (
            one.losses(ids, ids)[0] for one in (reference, fused, unrounded)
        )  # fmt: skip
    assert (got - expected).abs().mean() < 0.1 * (without - expected).abs().mean()


def test_a_compiled_part_computes_what_the_plain_one_does() -> None:
    """Compilation changes nothing but the time it takes, at two lengths of row."""
    parts = Parts()
    draw = torch.Generator().manual_seed(6)
    for tokens in (16, 32):
        near = torch.randn(1, tokens, 2, 16, generator=draw)
        far = torch.randn(1, tokens, 2, tokens // 4, generator=draw)
        sinks = torch.randn(2, generator=draw)
        expected = looks(near, far, None, sinks, 0.1, 4)
        got = parts.looks(near, far, None, sinks, 0.1, 4)
        for one, other in zip(got, expected, strict=True):
            torch.testing.assert_close(one, other)
