"""Opening models: one naming over two layouts, views not copies, nothing read unasked."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest
from ds4_daemon.errors import ModelFileError
from ds4_daemon.model import layout
from ds4_daemon.model.config import ModelConfig, RopeScaling
from ds4_daemon.model.files import ModelFiles, open_model
from ds4_daemon.model.quant import dequantize, integers
from ds4_daemon.model.tensor import Format
from safetensors.numpy import save_file

from tests.weights import tiny_files


@pytest.fixture
def release(tmp_path: Path) -> Path:
    return tiny_files.write_release(tmp_path / "release", tiny_files.CONFIG, tiny_files.arrays())


@pytest.fixture
def gguf_path(tmp_path: Path) -> Path:
    path = tmp_path / "model.gguf"
    return tiny_files.write_gguf(path, tiny_files.METADATA, tiny_files.arrays())


def values(files: ModelFiles, name: str) -> np.ndarray:
    tensor = files.tensor(name)
    return integers(tensor) if name.endswith("tid2eid") else dequantize(tensor)


@pytest.mark.parametrize("kind", ["release", "gguf_path"])
def test_both_layouts_give_every_tensor(kind: str, request: pytest.FixtureRequest) -> None:
    """Names, shapes and values are the same whether they come from safetensors or from GGUF."""
    expected = tiny_files.arrays()
    with open_model(request.getfixturevalue(kind)) as files:
        assert set(files.names()) == set(expected)
        for name, array in expected.items():
            assert name in files
            assert files.tensor(name).shape == array.shape
            np.testing.assert_array_equal(values(files, name), array, err_msg=name)
        assert "mtp.0.norm.weight" not in files


@pytest.mark.parametrize("kind", ["release", "gguf_path"])
def test_config_is_the_same(kind: str, request: pytest.FixtureRequest) -> None:
    """Both layouts yield one configuration; draft entries of the ratios are dropped."""
    with open_model(request.getfixturevalue(kind)) as files:
        config = files.config
    assert config == ModelConfig.from_config_json(tiny_files.CONFIG)
    assert config.compress_ratios == (0, 4, 32, 4)
    assert config.rope_scaling == RopeScaling(16.0, 256, 32.0, 1.0)
    assert (config.rms_norm_eps, config.hc_eps, config.swiglu_limit) == (1e-6, 1e-6, 10.0)
    assert config.clamp_shared_expert


@pytest.mark.parametrize("kind", ["release", "gguf_path"])
def test_experts_of_a_layer(kind: str, request: pytest.FixtureRequest) -> None:
    """Experts come as a list in order, split out of GGUF's stacks without a copy."""
    expected = tiny_files.arrays()
    with open_model(request.getfixturevalue(kind)) as files:
        for part in ("w1", "w2", "w3"):
            experts = files.experts(2, part)
            assert len(experts) == 4
            for number, expert in enumerate(experts):
                name = f"layers.2.ffn.experts.{number}.{part}.weight"
                assert expert.name == name
                assert not expert.data.flags.owndata and not expert.data.flags.writeable
                np.testing.assert_array_equal(dequantize(expert), expected[name])


def test_a_tensor_is_a_view_of_the_file(release: Path) -> None:
    """A tensor's bytes are the file's: a change on disk shows, and closing leaves held ones be."""
    files = open_model(release)
    tensor = files.tensor("norm.weight")
    with (release / "model.safetensors").open("r+b") as file:
        file.seek(file.read().index(tensor.data.tobytes()))
        file.write(b"\0\0\0\0")
    assert dequantize(tensor)[0] == 0
    files.close()
    assert dequantize(tensor)[0] == 0
    with pytest.raises(KeyError):
        files.tensor("norm.weight")


def test_tokenizer_source(release: Path, gguf_path: Path) -> None:
    """The tokenizer is the folder's tokenizer.json, GGUF's metadata, or nothing."""
    with open_model(release) as files:
        assert files.tokenizer_source is None
    (release / "tokenizer.json").write_text("{}")
    with open_model(release) as files:
        assert files.tokenizer_source == release / "tokenizer.json"
    with open_model(gguf_path) as files:
        assert isinstance(files.tokenizer_source, dict)
        assert files.tokenizer_source["deepseek4.block_count"] == 4


def test_bf16_and_f16_releases(tmp_path: Path) -> None:
    """Plain half-precision weights are accepted under the same names."""
    arrays = tiny_files.arrays()
    halves = {
        name: array.astype(np.float16) if array.dtype == np.float32 else array
        for name, array in arrays.items()
    }
    folder = tiny_files.write_release(tmp_path / "release", tiny_files.CONFIG, halves)
    path = folder / "model.safetensors"
    with open_model(folder) as files:
        assert files.tensor("head.weight").format is Format.F16
        np.testing.assert_array_equal(values(files, "head.weight"), halves["head.weight"])
    header = tiny_files.header_of(path)
    for info in header.values():
        info["dtype"] = info["dtype"].replace("F16", "BF16")
    tiny_files.put_header(path, header)
    with open_model(folder) as files:
        assert files.tensor("head.weight").format is Format.BF16


def test_shards_named_by_the_index(tmp_path: Path) -> None:
    """With an index only the files it names are read; without one, all of the folder."""
    arrays = tiny_files.arrays()
    folder = tiny_files.write_release(tmp_path / "release", tiny_files.CONFIG, arrays)
    whole = folder / "model.safetensors"
    names = sorted(arrays)
    for number, part in enumerate((names[::2], names[1::2])):
        save_file({n: arrays[n] for n in part}, folder / f"part{number}.safetensors")
    whole.unlink()
    (folder / "stray.safetensors").write_bytes(b"not weights")
    weight_map = {n: f"part{i % 2}.safetensors" for i, n in enumerate(names)}
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    with open_model(folder) as files:
        np.testing.assert_array_equal(values(files, "norm.weight"), arrays["norm.weight"])
    (folder / "stray.safetensors").unlink()
    index.unlink()
    with open_model(folder) as files:
        np.testing.assert_array_equal(values(files, "norm.weight"), arrays["norm.weight"])


def test_release_gives_memory_back(tmp_path: Path) -> None:
    """Reading 260 MB tensor by tensor, each let go after use, never holds much of it."""
    config = {**tiny_files.CONFIG, "vocab_size": 1_000_000, "num_hash_layers": 0}
    small = tiny_files.write_release(tmp_path / "big", config, {"x": np.zeros(1, np.float32)})
    header, at = {}, 0
    for name, shape in layout.tensors(ModelConfig.from_config_json(config)):
        size = int(np.prod(shape)) * 4
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [at, at + size]}
        at += size
    tiny_files.put_header(small / "model.safetensors", header)
    os.truncate(small / "model.safetensors", at + 1_000_000)  # sparse: holes read as zeros
    script = (
        "import sys, psutil\n"
        "from pathlib import Path\n"
        "from ds4_daemon.model.files import open_model\n"
        "files = open_model(Path(sys.argv[1]))\n"
        "rss = psutil.Process().memory_info\n"
        "start, peak = rss().rss, 0\n"
        "for name in files.names():\n"
        "    assert not files.tensor(name).data.any()\n"
        "    peak = max(peak, rss().rss)\n"
        "    files.release(name)\n"
        "print(peak - start, rss().rss - start)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(small)], capture_output=True, text=True, check=True
    )
    peak, after = map(int, done.stdout.split())
    largest = 1_000_000 * 32 * 4
    assert at > 2 * largest
    assert peak < 1.3 * largest
    assert after < 20_000_000


def test_opening_reads_no_data(gguf_path: Path) -> None:
    """Opening maps the file and reads its header; memory does not grow with the weights."""
    with gguf_path.open("r+b") as file:
        file.truncate(4_000_000_000)
    before = psutil.Process().memory_info().rss
    with open_model(gguf_path) as files:
        assert psutil.Process().memory_info().rss - before < 30_000_000
        assert files.file_bytes == 4_000_000_000


@pytest.mark.parametrize("kind", ["release", "gguf_path"])
def test_a_file_that_changed_is_told(kind: str, request: pytest.FixtureRequest) -> None:
    """A model that was cut short, written to or removed after opening is refused from then on."""
    path: Path = request.getfixturevalue(kind)
    [file] = path.glob("*.safetensors") if path.is_dir() else [path]
    whole, times = file.read_bytes(), (file.stat().st_atime_ns, file.stat().st_mtime_ns)
    with open_model(path) as files:
        files.check_unchanged()
        os.truncate(file, len(whole) - 1)
        os.utime(file, ns=times)
        changed(files, file)
        file.write_bytes(whole)
        os.utime(file, ns=(times[0], times[1] + 1))
        changed(files, file)
        os.utime(file, ns=times)
        files.check_unchanged()
        file.unlink()
        changed(files, file)


def changed(files: ModelFiles, file: Path) -> None:
    with pytest.raises(ModelFileError) as caught:
        files.check_unchanged()
    assert caught.value.reason == "MODEL_CHANGED"
    assert str(file) in caught.value.message and caught.value.hint
