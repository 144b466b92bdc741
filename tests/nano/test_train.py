"""The embedded model's trainer on a tiny network: what it computes, learns and resumes."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from ds4_daemon.model.config import ModelConfig

from bench.transformers_peer import peer_model
from models.nano import checkpoint, feed, schedule
from models.nano.model import Trainee, balanced_table
from models.nano.train import Plan, Trainer
from tests.model.random_models import CONFIGS, random_ids, random_tensors

CONFIG = replace(CONFIGS["small"], num_hidden_layers=4, compress_ratios=(0, 4, 32, 4),
                 num_hash_layers=1, index_topk=8)  # fmt: skip
CPU = torch.device("cpu")
ROW = 128


class Steps:
    """A clock that counts steps: a minute each."""

    virtual = True

    def __call__(self, step: int) -> float:
        return 60.0 * step


def trainee(config: ModelConfig = CONFIG) -> Trainee:
    return Trainee(config, CPU, 1, bf16=False)


def trainer(out: Path, steps: int, **changes: object) -> Trainer:
    stages = (schedule.Stage("A", 0.6, (64,)), schedule.Stage("C", 1.0, (128,)))
    plan = Plan(out, minutes=steps, micro_tokens=256, stages=stages, quantized="none",
                checkpoint_s=1e9)  # fmt: skip
    plan = replace(plan, **changes)  # type: ignore[arg-type]
    return Trainer(plan, CONFIG, feed.noise(CONFIG.vocab_size), CPU, Steps())


@pytest.mark.parametrize("sparse", [False, True])
def test_chunked_attention_is_eager_attention(sparse: bool) -> None:
    """The trainer's blocked attention gives the library's logits."""
    config = CONFIG if sparse else replace(CONFIG, index_topk=ROW)
    values = random_tensors(config, 4)
    peer = peer_model(config, values.__getitem__)
    ours = trainee(config)
    ours.net.load_state_dict(peer.state_dict())
    ours.choose_sparsely(sparse)
    ids = torch.from_numpy(np.stack([random_ids(config, ROW, seed) for seed in (1, 2)])).long()
    with torch.no_grad():
        expected = peer(ids, use_cache=False).logits
        found = ours.net.lm_head(ours.hidden(ids))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_the_indexer_learns_and_teaches_nothing_else() -> None:
    """The indexer's loss reaches its weights and no others."""
    ours = trainee()
    ids = torch.from_numpy(random_ids(CONFIG, ROW, 1)).long()[None]
    _, divergence = ours.losses(ids, ids)
    divergence.backward()
    for name, parameter in ours.net.named_parameters():
        touched = parameter.grad is not None and bool(parameter.grad.abs().sum() > 0)
        assert touched == (".indexer." in name), name


def test_a_few_steps_lower_the_loss(tmp_path: Path) -> None:
    """Training learns."""
    run = trainer(tmp_path, steps=1000)
    first = run.one_step()["totals"][0]
    for _ in range(30):
        last = run.one_step()["totals"][0]
    run.close()
    assert last < first - 0.5


def test_a_resumed_run_goes_on_as_if_never_killed(tmp_path: Path) -> None:
    """Losses after a resume are those of the run that was not interrupted."""
    whole = trainer(tmp_path / "whole", steps=8)
    expected = [whole.one_step()["totals"] for _ in range(8)]
    whole.close()
    begun = trainer(tmp_path / "killed", steps=8)
    for _ in range(3):
        begun.one_step()
    begun.save()
    begun.one_step()  # after the checkpoint, and lost
    begun.close()
    resumed = trainer(tmp_path / "killed", steps=8)
    assert resumed.resume()
    found = [resumed.one_step()["totals"] for _ in range(5)]
    resumed.close()
    torch.testing.assert_close(torch.stack(found), torch.stack(expected[3:]), atol=1e-5, rtol=1e-5)


def test_an_unfinished_checkpoint_is_not_taken_up(tmp_path: Path) -> None:
    """What a killed process half wrote is ignored."""
    run = trainer(tmp_path, steps=8)
    run.one_step()
    run.save()
    (tmp_path / ".step-9.new").mkdir()
    assert [path.name for path in checkpoint.steps(tmp_path)] == ["step-1"]
    run.close()


def test_the_bias_balances_a_skewed_router() -> None:
    """Updating the bias evens out the load of the experts."""
    ours = trainee()
    gate = ours.net.model.layers[3].mlp.gate
    gate.e_score_correction_bias[:2] += 0.3  # two of the experts that all tokens want
    ids = torch.from_numpy(random_ids(CONFIG, ROW, 1)).long()[None]

    def worst() -> float:
        with torch.no_grad():
            ours.hidden(ids)
        return float(gate.load.max() / gate.load.mean())

    before = worst()
    for _ in range(60):
        with torch.no_grad():
            ours.hidden(ids)
        ours.balance(ours.loads(), 0.005)
    assert before > 2 and worst() < before / 1.5


def test_hash_layers_serve_frequent_and_rare_tokens_evenly() -> None:
    """The table spreads tokens by how often they come."""
    frequencies = (1e6 / (1 + np.arange(CONFIG.vocab_size))).astype(np.int64)
    table = balanced_table(CONFIG, frequencies, 0).numpy()
    assert all(len(set(row)) == CONFIG.num_experts_per_tok for row in table)
    load = np.bincount(table.ravel(), np.repeat(frequencies, table.shape[1]))
    assert load.max() / load.mean() < 2.5  # one token alone is a sixth of all


def test_quantized_training_moves_only_the_experts(tmp_path: Path) -> None:
    """Quantization-aware steps round the routed experts and nothing else."""
    run = trainer(tmp_path, steps=2, quantized="noise")
    for _ in range(3):
        run.one_step()
    for name, parameter in run.trainee.net.named_parameters():
        same = bool((parameter == run.optimizer.masters[name]).all())
        assert same != (".mlp.experts." in name), name
    run.close()


def test_the_rate_warms_up_and_falls() -> None:
    """The learning rate follows its schedule over the wall clock."""
    assert schedule.rate(0.5, 0) == 1 / schedule.WARM_UP_STEPS
    assert schedule.rate(0.5, 10_000) == 1
    assert schedule.rate((1 + schedule.DECAY_FROM) / 2, 10_000) == pytest.approx(0.5)
    assert schedule.rate(1.5, 10_000) == 0
    assert [schedule.stage_at(p) for p in (0, 0.44, 0.46, 0.9, 1.2)] == [0, 0, 1, 2, 2]
