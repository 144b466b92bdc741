"""What leaves the trainer: the export's gate, what QAT's projection can hold, and the GGUF."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from ds4_daemon.model.config import ModelConfig
from ds4_daemon.model.quant import codes

from models.nano import checkpoint, qat, quantize
from models.nano.export import difference, export, trainee_of
from models.nano.geometry import GEOMETRY
from models.nano.model import Trainee

TINY = replace(GEOMETRY, num_hidden_layers=3, num_hash_layers=1, compress_ratios=(0, 4, 128),
               n_routed_experts=8, num_attention_heads=2)  # fmt: skip


def parent(folder: Path, config: ModelConfig = TINY) -> Path:
    trainee = Trainee(config, torch.device("cpu"), 1, False)
    for name, parameter in trainee.net.named_parameters():
        if "norm" not in name and "_hc" not in name:
            parameter.data *= 3  # so that logits differ by more than the gate allows
    checkpoint.write_parent(folder, config, trainee.net.state_dict())
    return folder


def test_what_is_exported_computes_what_was_trained(tmp_path: Path) -> None:
    """The exported folder gives the trainer's logits in ds4."""
    assert export(parent(tmp_path / "step-1"), tmp_path / "out", 128, 1) < 1e-4
    assert difference(tmp_path / "out", 128, 2) < 1e-4


def test_the_gate_refuses_another_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights that compute something else are not exported."""
    folder = parent(tmp_path / "step-1")
    wrong = trainee_of(folder)
    wrong.net.model.layers[1].self_attn.sinks.data += 0.5
    monkeypatch.setattr("models.nano.export.trainee_of", lambda _: wrong)
    with pytest.raises(ValueError, match="logits differ"):
        export(folder, tmp_path / "out", 128, 1)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("project", "most"), [(qat.iq2_xxs, 0.344), (qat.q2_k, 0.275)]
)  # what ggml's search reaches on such rows, and a little more for Q2_K
def test_a_projection_is_near_and_is_its_own(project: object, most: float) -> None:
    """Rounding to a 2-bit grid errs as measured, and twice is once."""
    rows = torch.randn(256, 512, generator=torch.Generator().manual_seed(1))
    near = project(rows)  # type: ignore[operator]
    assert float((near - rows).norm() / rows.norm()) < most
    again = project(near)  # type: ignore[operator]
    assert float((again - near).norm() / near.norm()) < 1e-3


def test_iq2_xxs_can_hold_the_projection_exactly() -> None:
    """Each projected block is one that the format can store."""
    rows = torch.randn(64, 256, generator=torch.Generator().manual_seed(2))
    grid = {tuple(row) for row in codes.iq2_grid().astype(int).tolist()}
    for block in qat.iq2_xxs(rows).numpy():
        steps = []
        for group in block.reshape(8, 4, 8):
            largest = np.abs(group).max()
            fits = [level for level in (43, 25, 8) if _in_grid(group * level / largest, grid)]
            assert fits
            steps.append(largest / fits[0])
        assert ((block.reshape(32, 8) < 0).sum(axis=1) % 2 == 0).all()
        d = max(steps) * 8 / 31
        assert d == pytest.approx(float(np.float16(d)), rel=1e-6)
        code = np.array(steps) / d * 4 - 0.5
        np.testing.assert_allclose(code, code.round(), atol=1e-3)


def _in_grid(runs: np.ndarray, grid: set[tuple[int, ...]]) -> bool:
    whole = np.abs(runs).round().astype(int)
    close = np.allclose(np.abs(runs), whole, atol=1e-2)
    return close and all(tuple(run) in grid for run in whole.tolist())


def test_a_run_can_begin_from_the_file_that_came_of_one(tmp_path: Path) -> None:
    """A quantized file gives the trainer's weights back as its blocks hold them, experts too; one
    of other sizes is refused."""
    folder = parent(tmp_path / "step-1")
    quantize.write(folder, tmp_path / "tiny.gguf")
    ours = checkpoint.state_of(tmp_path / "tiny.gguf", TINY)
    theirs = checkpoint.state_of(folder, TINY)
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        apart = (ours[name].float() - value.float()).norm() / value.float().norm().clamp_min(1e-9)
        assert apart < (0.4 if ".mlp.experts." in name else 0.01), (name, float(apart))
    with pytest.raises(ValueError, match="other sizes"):
        checkpoint.state_of(folder, GEOMETRY)
