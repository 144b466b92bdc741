"""ggml's own quantizer, built for it.  Not part of `make test`: `pytest tests/nano/build`."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from ds4_daemon.model.config import ModelConfig
from gguf import GGMLQuantizationType as Type
from gguf import quants

from models.nano import build_ggml, checkpoint, qat
from models.nano.export import trainee_of
from models.nano.geometry import GEOMETRY
from models.nano.ggml import Quantizer
from models.nano.importance import measure
from models.nano.model import Trainee
from models.nano.quantize import write
from models.nano.variants import by_ggml, fill

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
    """Why we pack ourselves: ggml keeps a projection to Q2_K, but moves one to IQ2_XXS by < 8 %."""
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


def test_variants_with_importance(tmp_path: Path) -> None:
    """ggml's variants hold the parent's experts, and are weighed by what text drives them with."""
    folder = parent(tmp_path / "parent")
    ids = torch.arange(128)[None]
    importance = measure(trainee_of(folder), [ids])
    assert importance[0].down.shape == (TINY.n_routed_experts, TINY.moe_intermediate_size)
    ggml = quantizer()
    trainee = trainee_of(folder)
    stacks = dict(trainee.expert_parameters())
    wanted = {name: stack.detach().clone() for name, stack in stacks.items()}
    found = []
    for weighed in (None, importance):
        write(folder, tmp_path / "variant.gguf", by_ggml(ggml, weighed))
        fill(trainee, tmp_path / "variant.gguf")
        found.append({name: stack.detach().clone() for name, stack in stacks.items()})
        for name, stack in found[-1].items():
            assert 0.2 < (stack - wanted[name]).norm() / wanted[name].norm() < 0.5
    assert any(not torch.equal(found[0][name], found[1][name]) for name in wanted)
