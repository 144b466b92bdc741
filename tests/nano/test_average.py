"""The mean of two checkpoints of one training."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from models.nano import checkpoint
from models.nano.average import average
from models.nano.export import export
from models.nano.model import Trainee
from tests.nano.test_train_export import TINY


def folder(path: Path, seed: int, table: int = 1) -> Path:
    trainee = Trainee(TINY, torch.device("cpu"), seed, bf16=False)
    trainee.net.model.layers[0].mlp.gate.tid2eid[0, 0] = table
    checkpoint.write_parent(path, TINY, trainee.net.state_dict())
    return path


def test_the_mean_is_between_both_and_can_be_exported(tmp_path: Path) -> None:
    """Each weight is three parts of the one and one of the other; whole numbers are kept."""
    one, other = folder(tmp_path / "one", 1), folder(tmp_path / "other", 1)
    changed = load_file(other / "model.safetensors")
    changed["embed.weight"] += 1
    save_file(changed, other / "model.safetensors")
    average(one, other, 0.25, tmp_path / "mean")
    before, after = (load_file(f / "model.safetensors") for f in (one, tmp_path / "mean"))
    for name, tensor in before.items():
        expected = tensor + 0.25 * (name == "embed.weight")
        torch.testing.assert_close(after[name], expected.to(tensor.dtype), atol=1e-2, rtol=1e-2)
        assert after[name].dtype == tensor.dtype
    export(tmp_path / "mean", tmp_path / "out", 128, 1)


def test_what_cannot_be_averaged_is_refused(tmp_path: Path) -> None:
    """Hash tables of another training, other tensors and other shares leave nothing behind."""
    one, other = folder(tmp_path / "one", 1), folder(tmp_path / "other", 1, table=2)
    with pytest.raises(ValueError, match="not of one training"):
        average(one, other, 0.5, tmp_path / "mean")
    save_file({}, other / "model.safetensors")
    with pytest.raises(ValueError, match="not of one network"):
        average(one, other, 0.5, tmp_path / "mean")
    with pytest.raises(ValueError, match="no share"):
        average(one, one, 1.5, tmp_path / "mean")
    assert not (tmp_path / "mean").exists()
