"""ggml's own quantizer, built for it.  Not part of `make test`: `pytest tests/nano/build`."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from ds4_daemon.model.config import ModelConfig
from ds4_daemon.model.load import load_network
from ds4_daemon.model.network import Segment, Want
from gguf import GGMLQuantizationType as Type
from gguf import quants

from models.nano import build_ggml, checkpoint, qat
from models.nano.export import trainee_of
from models.nano.geometry import GEOMETRY
from models.nano.ggml import Quantizer
from models.nano.importance import measure
from models.nano.model import Trainee
from models.nano.quantize import write

TINY = replace(GEOMETRY, num_hidden_layers=3, num_hash_layers=1, compress_ratios=(0, 4, 128),
               n_routed_experts=8, num_attention_heads=2)  # fmt: skip


def parent(folder: Path, config: ModelConfig = TINY) -> Path:
    trainee = Trainee(config, torch.device("cpu"), 1, False)
    for name, parameter in trainee.net.named_parameters():
        if "norm" not in name and "_hc" not in name:
            parameter.data *= 3  # so that logits differ by more than the gate allows
    checkpoint.write_parent(folder, config, trainee.net.state_dict())
    return folder


def quantizer() -> Quantizer:
    return Quantizer(build_ggml.library(build_ggml.default_cache()))


def test_ggml_keeps_a_projection() -> None:
    """Requantizing what training rounded to keeps it: Q2_K exactly, IQ2_XXS within 8 %."""
    ggml, one = quantizer(), np.ones(256, np.float32)
    rows = torch.randn(128, 256, generator=torch.Generator().manual_seed(3))
    for kind, project, most in ((Type.Q2_K, qat.q2_k, 1e-6), (Type.IQ2_XXS, qat.iq2_xxs, 0.08)):
        near = project(rows).numpy()
        again = quants.dequantize(ggml.blocks(near, kind, one), kind)
        assert np.linalg.norm(again - near) / np.linalg.norm(near) < most


def test_ggml_and_gguf_write_the_same_q8_0() -> None:
    """ggml's bytes are those of the gguf package."""
    rows = np.random.default_rng(1).standard_normal((16, 512)).astype(np.float32)
    assert np.array_equal(quantizer().blocks(rows, Type.Q8_0), quants.quantize(rows, Type.Q8_0))


def test_the_quantized_file_runs(tmp_path: Path) -> None:
    """A quantized GGUF loads and gives finite logits."""
    folder = parent(tmp_path / "parent")
    ids = np.arange(128, dtype=np.int32)
    importance = measure(trainee_of(folder), [torch.from_numpy(ids).long()[None]])
    assert importance[0].down.shape == (TINY.n_routed_experts, TINY.moe_intermediate_size)
    write(folder, tmp_path / "nano.gguf", quantizer(), importance)
    network = load_network(tmp_path / "nano.gguf", device="cpu")
    (logits,) = network.forward([Segment(network.new_state(), ids, Want.LAST)])
    assert logits is not None and np.isfinite(logits).all()
