"""The thin model: V4 Flash's layers, cached rows and rounding, with almost nothing between them.

43 layers of the true kinds in the true order, heads of 512 = 448 + 64 channels, window 128, ratios
4 and 128, indexer keys of 128; hidden size 256, four heads, two experts, random weights. What it
caches a token is what V4 Flash caches, so that a machine without V4's 80 GB can measure the way of
that state. Its text is noise. Written as a released checkpoint in float32.
"""

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
from ds4_daemon import standin
from ds4_daemon.model.config import ModelConfig, RopeScaling
from ds4_daemon.model.layout import tensors
from ds4_daemon.standin.drawing import GEOMETRY
from safetensors.numpy import save_file

CONFIG: ModelConfig = replace(
    GEOMETRY,
    num_hidden_layers=43,
    compress_ratios=(0, 0, *(4, 128) * 20, 4),
    n_routed_experts=2,
    num_experts_per_tok=2,
    moe_intermediate_size=64,
    max_position_embeddings=1_048_576,
    rope_scaling=RopeScaling(16.0, 65_536, 32.0, 1.0),
    index_n_heads=4,
)


def write(folder: Path, seed: int = 0) -> Path:
    """The model in `folder`, written if it is not there: 200 MB, some seconds."""
    if (folder / "config.json").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    values: dict[str, np.ndarray] = {}
    for name, shape in tensors(CONFIG):
        if name.endswith("tid2eid"):
            values[name] = np.tile(np.arange(shape[1], dtype=np.int64), (shape[0], 1))
            continue
        drawn = random.standard_normal(shape, np.float32)
        if name.endswith(("norm.weight", "_scale")):
            drawn = 1 + 0.1 * drawn
        elif len(shape) == 2:
            drawn *= shape[-1] ** -0.5
        values[name] = drawn
    save_file(values, folder / "model.safetensors")
    shutil.copyfile(standin.TOKENIZER, folder / "tokenizer.json")
    # Last: a folder with a configuration is whole.
    (folder / "config.json").write_text(json.dumps(_released(CONFIG)))
    return folder


def _released(config: ModelConfig) -> dict[str, object]:
    """The released config.json of this network."""
    sizes = asdict(config)
    del sizes["clamp_shared_expert"], sizes["draft_stages"]
    return {
        **sizes,
        "rope_scaling": {"type": "yarn", **sizes["rope_scaling"]},
        "model_type": "deepseek_v4",
        "num_key_value_heads": 1,
        "scoring_func": "sqrtsoftplus",
        "topk_method": "noaux_tc",
        "norm_topk_prob": True,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "bos_token_id": 0,
        "eos_token_id": 1,
    }
