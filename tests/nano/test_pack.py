"""Packing: the file holds what training projected to, bit for bit."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from ds4_daemon.model import layout
from ds4_daemon.model.files import ModelFiles, open_model
from ds4_daemon.model.load import load_network
from ds4_daemon.model.network import Segment, Want
from ds4_daemon.model.quant import blocks, dequantize
from ds4_daemon.model.tensor import Format
from ds4_daemon.standin.gguf_writer import storage
from gguf import GGMLQuantizationType as Type
from safetensors.torch import load_file, save_file

from models.nano import checkpoint, pack, qat, quantize
from models.nano.geometry import GEOMETRY
from models.nano.model import Trainee

TINY = replace(GEOMETRY, num_hidden_layers=3, num_hash_layers=1, compress_ratios=(0, 4, 128),
               n_routed_experts=2, num_experts_per_tok=2, num_attention_heads=2)  # fmt: skip
KINDS = {Type.IQ2_XXS: qat.iq2_xxs, Type.Q2_K: qat.q2_k}


def parent(folder: Path) -> Path:
    trainee = Trainee(TINY, torch.device("cpu"), 1, False)
    checkpoint.write_parent(folder, TINY, trainee.net.state_dict())
    return folder


def rows(kind: Type) -> torch.Tensor:
    """Two stacks of rows of two blocks: Gaussian, far too small, far too large, zero, one-sided."""
    generator = torch.Generator().manual_seed(kind.value)
    x = torch.randn(2, 8, 512, generator=generator)
    x[0, 1] *= 1e-8
    x[0, 2] *= 1e3
    x[0, 3] = 0
    x[0, 4] = x[0, 4].abs()
    x[0, 5] = -x[0, 5].abs()
    x[1, 6, :256] = 0
    return x


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_read_back_as_training_projected(kind: Type) -> None:
    """What our reader finds in packed blocks is the projection, to the last bit."""
    x = rows(kind)
    packed = pack.expert_blocks(x, kind)
    read = blocks.dequantize_blocks(Format[kind.name], packed)
    wanted = KINDS[kind](x).numpy()
    assert np.array_equal(read.view(np.uint32), wanted.view(np.uint32))
    assert np.abs(wanted).max() > 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_wrong_bit_is_found(kind: Type, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks that would not read back as projected are refused."""
    half = pack._half
    monkeypatch.setattr(pack, "_half", lambda scale: half(scale * 2))
    with pytest.raises(RuntimeError, match=f"packed {kind.name}"):
        pack.expert_blocks(rows(kind), kind)


@pytest.mark.parametrize(
    ("kind", "x", "words"),
    [
        (Type.Q2_K, torch.zeros(1, 100), "whole blocks"),
        (Type.IQ2_XXS, torch.full((1, 256), torch.nan), "NaN"),
        (Type.Q2_K, torch.full((1, 256), 1e7), "larger than"),
        (Type.Q4_K, torch.zeros(1, 256), "not Q4_K"),
    ],
)
def test_what_cannot_be_packed(kind: Type, x: torch.Tensor, words: str) -> None:
    """Broken rows, weights that are no numbers or too large, and other types are refused."""
    with pytest.raises(ValueError, match=words):
        pack.expert_blocks(x, kind)


def same_experts(shipped: ModelFiles, made_from: ModelFiles) -> None:
    for name, shape in layout.tensors(TINY):
        if ".ffn.experts." in name:
            weights = torch.from_numpy(dequantize(made_from.tensor(name)))
            wanted = KINDS[storage(name, shape)](weights).numpy()
            assert np.array_equal(dequantize(shipped.tensor(name)), wanted), name


def test_the_file_holds_the_projection_and_runs(tmp_path: Path) -> None:
    """The quantized file's experts are the projected parent's, each in its place; it computes."""
    folder = parent(tmp_path / "parent")
    quantize.write(folder, tmp_path / "nano.gguf")
    with open_model(tmp_path / "nano.gguf") as shipped, open_model(folder) as made_from:
        assert shipped.config == made_from.config
        for name, shape in layout.tensors(TINY):
            if not name.endswith("tid2eid"):
                assert shipped.tensor(name).format == Format[storage(name, shape).name]
        same_experts(shipped, made_from)
    network = load_network(tmp_path / "nano.gguf", device="cpu")
    ids = np.arange(128, dtype=np.int32)
    (logits,) = network.forward([Segment(network.new_state(), ids, Want.LAST)])
    assert logits is not None and np.isfinite(logits).all()


def test_broken_weights_make_no_file(tmp_path: Path) -> None:
    """A parent with a NaN is refused by the tensor's name, and no file appears."""
    folder = parent(tmp_path / "parent")
    tensors = load_file(folder / "model.safetensors")
    tensors["layers.1.attn.wkv.weight"][0, 0] = torch.nan
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"layers\.1\.attn\.wkv\.weight is not finite"):
        quantize.write(folder, tmp_path / "nano.gguf")
    assert not (tmp_path / "nano.gguf").exists()
