"""Checkpoints of the trainer: whole or absent, whenever the process is killed.

A checkpoint is a folder `step-N` that is itself a model in the released layout (bf16 weights,
config.json, tokenizer.json: ds4 opens it), with the float32 masters, the optimizer's moments and
the trainer's state beside it. It is written under another name, flushed and renamed.
"""

import dataclasses
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from ds4_daemon.model.config import ModelConfig
from ds4_daemon.model.files import open_model
from safetensors.torch import load_file, save_file

from bench.transformers_peer import peer_tensors, reader, released_tensors

TOKENIZER = Path(__file__).with_name("tokenizer.json")
KEPT = 2
_BF16 = ".weight"  # what the release keeps in bf16; the rest stays float32


def config_json(config: ModelConfig, comment: str) -> dict[str, Any]:
    """The released config.json of an unquantized model."""
    sizes = dataclasses.asdict(config)
    del sizes["clamp_shared_expert"]
    return {
        "_comment": comment,
        "architectures": ["DeepseekV4ForCausalLM"],
        "model_type": "deepseek_v4",
        **sizes,
        "rope_scaling": {"type": "yarn", **sizes["rope_scaling"]},
        "num_key_value_heads": 1,
        "num_nextn_predict_layers": 0,
        "scoring_func": "sqrtsoftplus",
        "topk_method": "noaux_tc",
        "norm_topk_prob": True,
        "hidden_act": "silu",
        "attention_bias": False,
        "tie_word_embeddings": False,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "torch_dtype": "bfloat16",
    }


def write_parent(
    folder: Path, config: ModelConfig, state: Mapping[str, torch.Tensor], float32: bool = False
) -> None:
    """A model folder in the released layout from a state dict of the peer's names."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for name, tensor in released_tensors(config, state):
        value = tensor.detach().cpu().clone()
        if value.is_floating_point():
            narrow = name.endswith(_BF16) and not float32
            value = value.to(torch.bfloat16 if narrow else torch.float32)
        tensors[name] = value.contiguous()
    save_file(tensors, folder / "model.safetensors")
    comment = "ds4's embedded test model; not DeepSeek's weights"
    (folder / "config.json").write_text(json.dumps(config_json(config, comment), indent=1))
    shutil.copyfile(TOKENIZER, folder / "tokenizer.json")


def state_of(model: Path, config: ModelConfig) -> dict[str, torch.Tensor]:
    """The peer's state dict from any model that ds4 opens: a folder, or a quantized file, whose
    weights are those that its blocks stand for. Raises ValueError if it is of other sizes."""
    with open_model(model) as files:
        # Draft stages are not trained, and not written.
        if dataclasses.replace(files.config, draft_stages=config.draft_stages) != config:
            raise ValueError(f"{model} is a model of other sizes")
        return dict(peer_tensors(config, reader(files)))


def save(
    out: Path,
    config: ModelConfig,
    state: Mapping[str, torch.Tensor],
    moments: Mapping[str, torch.Tensor],
    progress: dict[str, Any],
) -> Path:
    """Write `out/step-N`, N being `progress["step"]`, and remove all but the last few."""
    target = out / f"step-{progress['step']}"
    if target.exists():
        return target
    scratch = out / f".step-{progress['step']}.new"
    shutil.rmtree(scratch, ignore_errors=True)
    write_parent(scratch, config, state)
    write_parent(scratch / "masters", config, state, float32=True)
    save_file({n: t.cpu().contiguous() for n, t in moments.items()},
              scratch / "moments.safetensors")  # fmt: skip
    (scratch / "state.json").write_text(json.dumps(progress))
    for path in scratch.rglob("*"):
        _flush(path)
    scratch.rename(target)
    _flush(out)
    for old in steps(out)[:-KEPT]:
        shutil.rmtree(old)
    return target


def steps(out: Path) -> list[Path]:
    """Finished checkpoints, oldest first."""
    return sorted(out.glob("step-*"), key=lambda path: int(path.name.partition("-")[2]))


def load(
    folder: Path, config: ModelConfig
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], dict[str, Any]]:
    """State dict of the masters, moments and progress of a checkpoint."""
    state = state_of(folder / "masters", config)
    progress: dict[str, Any] = json.loads((folder / "state.json").read_text())
    return state, load_file(folder / "moments.safetensors"), progress


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
