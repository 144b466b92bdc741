"""Quantized files against the same numbers in float32, through the whole network."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from ds4_daemon import standin
from ds4_daemon.errors import ConfigError, ModelFileError
from ds4_daemon.logits import compute
from ds4_daemon.model.files import open_model
from ds4_daemon.model.layout import tensors
from ds4_daemon.model.load import load_network
from ds4_daemon.model.quant import dequantize, integers
from safetensors.torch import save_file

from tests.model.random_models import CONFIGS, random_ids, random_tensors, write_release
from tests.model.sparse_release import write_sparse_release

IDS = np.random.RandomState(3).randint(3, 8192, 150).astype(np.int32)


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> standin.StandIn:
    return standin.make(tmp_path_factory.mktemp("cache") / "stand-in")


def numbers_of(path: Path, folder: Path) -> Path:
    """The model at `path` written again with every weight as a float32 number."""
    with open_model(path) as files:
        values = {}
        for name, _ in tensors(files.config):
            tensor = files.tensor(name)
            whole = name.endswith("tid2eid")
            values[name] = integers(tensor).astype(np.int64) if whole else dequantize(tensor)
        return write_release(folder, files.config, values)


@pytest.mark.parametrize("layout", ["release", "gguf"])
@pytest.mark.parametrize("device", ["cpu", "mlx-cpu"])
def test_quantized_weights_compute_what_their_numbers_do(
    stand_in: standin.StandIn, tmp_path: Path, layout: str, device: str
) -> None:
    """Each layout, FP8 and FP4 or ggml's types, gives its own numbers' logits within 1e-3."""
    path = getattr(stand_in, layout)
    expected = compute(
        load_network(numbers_of(path, tmp_path), device="cpu", rounding=False), IDS, [128, 1]
    )
    ids = IDS if device == "cpu" else IDS[:40]  # MLX's products are slow on a CPU
    network = load_network(path, device=device, dtype="f32", rounding=False)
    # Both ways through the experts: many tokens at once, and one at a time.
    got = compute(network, ids, [36, 1])
    assert np.abs(got - expected[: len(ids)]).max() < 1e-3


def test_both_layouts_of_a_model_agree_as_far_as_their_formats_do(
    stand_in: standin.StandIn,
) -> None:
    """Release and GGUF differ by the quantization of each: logits correlate at 0.95 or more."""
    by_layout = [
        compute(load_network(path, device="cpu"), IDS, [128])
        for path in (stand_in.release, stand_in.gguf)
    ]
    assert np.corrcoef(by_layout[0].ravel(), by_layout[1].ravel())[0, 1] >= 0.95
    # What neither file quantizes is equal, so the difference above is quantization.
    with open_model(stand_in.release) as one, open_model(stand_in.gguf) as other:
        for name, _ in tensors(one.config):
            a, b = one.tensor(name), other.tensor(name)
            if "scale" in name or "norm" in name or "sink" in name or name.endswith("gate.bias"):
                assert np.array_equal(dequantize(a), dequantize(b)), name


@pytest.mark.parametrize("device", ["cpu", "mlx-cpu"])
def test_loading_takes_little_more_memory_than_the_file(tmp_path: Path, device: str) -> None:
    """A process that loads 1.8 GB of true shapes peaks at 1.1 × the file + 500 MB or less."""
    weights = write_sparse_release(tmp_path / "model")
    code = (
        "import sys, resource; from pathlib import Path;"
        "from ds4_daemon.model.load import load_network;"
        f"load_network(Path(sys.argv[1]), device={device!r});"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(weights.parent)], capture_output=True, check=True
    )
    unit = 1 if sys.platform == "darwin" else 1024
    peak_bytes = int(done.stdout) * unit
    assert weights.stat().st_size > 1.5e9  # a second copy of it would not pass
    assert peak_bytes <= 1.1 * weights.stat().st_size + 500e6


def test_an_expert_that_is_not_there_is_found_at_load(tmp_path: Path) -> None:
    """A hash table that names an expert past the last is refused before anything runs."""
    values = random_tensors(CONFIGS["small"], 0)
    values["layers.1.ffn.gate.tid2eid"][7, 0] = CONFIGS["small"].n_routed_experts
    folder = write_release(tmp_path / "model", CONFIGS["small"], values)
    with pytest.raises(ModelFileError) as caught:
        load_network(folder, device="cpu")
    assert caught.value.reason == "MODEL_EXPERT_OUT_OF_RANGE"


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"device": "tpu"}, "UNKNOWN_DEVICE"),
        ({"dtype": "f64"}, "UNKNOWN_DTYPE"),
        ({"device": "cpu", "dtype": "bf16"}, "NO_BF16_ON_CPU"),
    ],
)
def test_devices_and_types_that_cannot_be_had_are_named(
    stand_in: standin.StandIn, options: dict[str, str], reason: str
) -> None:
    """An impossible device or type is a ConfigError, never a silent other choice."""
    with pytest.raises(ConfigError) as caught:
        load_network(stand_in.gguf, **options)  # type: ignore[arg-type]
    assert caught.value.reason == reason


def test_the_logits_command_writes_every_position(tmp_path: Path) -> None:
    """`python -m ds4_daemon.logits` needs ids alone and gives what the network computes."""
    config = CONFIGS["small"]
    folder = write_release(tmp_path / "model", config, random_tensors(config, 0))
    ids = random_ids(config, 50, 1)
    np.save(tmp_path / "ids.npy", ids.astype(np.int64))
    arguments = ["--chunks", "5,37,1", "--no-rounding", "--dtype", "f32", "--device", "cpu"]
    files = ["--ids", str(tmp_path / "ids.npy"), "--out", str(tmp_path / "out.npy")]
    command = [sys.executable, "-m", "ds4_daemon.logits", str(folder), *files, *arguments]
    subprocess.run(command, check=True)
    got = np.load(tmp_path / "out.npy")
    expected = compute(load_network(folder, device="cpu", rounding=False), ids, [5, 37, 1])
    assert got.dtype == np.float32
    assert np.array_equal(got, expected)


def test_bf16_weights_are_numbers_like_others(tmp_path: Path) -> None:
    """A folder of BF16 weights computes what the same numbers in F32 do, on both backends."""
    config = CONFIGS["small"]
    values = random_tensors(config, 0)
    short = {n: v if v.dtype == np.int64 else v.view(np.uint32) >> 16 for n, v in values.items()}
    wide = {
        n: v if v.dtype == np.int64 else (v << 16).astype(np.uint32).view(np.float32)
        for n, v in short.items()
    }
    torch_like = {
        n: torch.from_numpy(v)
        if v.dtype == np.int64
        else torch.from_numpy(v.astype(np.uint16)).view(torch.bfloat16)
        for n, v in short.items()
    }
    folder = write_release(tmp_path / "wide", config, wide)
    narrow = tmp_path / "narrow"
    narrow.mkdir()
    (narrow / "config.json").write_bytes((folder / "config.json").read_bytes())
    save_file(torch_like, narrow / "model.safetensors")
    ids = random_ids(config, 60, 2)
    expected = compute(load_network(folder, device="cpu", rounding=False), ids, [60])
    for device in ("cpu", "mlx-cpu"):
        network = load_network(narrow, device=device, dtype="f32", rounding=False)
        assert np.abs(compute(network, ids, [60]) - expected).max() < 1e-4


def test_a_file_that_shrinks_while_it_is_used_is_an_error_and_no_crash(tmp_path: Path) -> None:
    """Weights that are read from a file that was cut short are not read any more."""
    config = CONFIGS["small"]
    folder = write_release(tmp_path / "model", config, random_tensors(config, 0))
    network = load_network(folder, device="cpu", dequantized_budget_bytes=0)
    ids = random_ids(config, 4, 1)
    compute(network, ids, [])
    os.truncate(folder / "model.safetensors", 5000)
    with pytest.raises(ModelFileError) as caught:
        compute(network, ids, [])
    assert caught.value.reason == "MODEL_CHANGED"
