"""The synthetic model: V4 Flash's tensors to the byte, one model in both layouts, or nothing."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import gguf
import numpy as np
import pytest
from ds4_daemon.errors import ConfigError
from ds4_daemon.logits import compute
from ds4_daemon.model import layout
from ds4_daemon.model.config import ModelConfig
from ds4_daemon.model.files import open_model
from ds4_daemon.model.load import load_network
from ds4_daemon.model.quant import dequantize, integers
from ds4_daemon.model.tensor import Format
from ds4_daemon.standin import TOKENIZER, gguf_writer, release
from ds4_daemon.standin.drawing import GEOMETRY
from ds4_daemon.text.tokenizer import Tokenizer
from gguf import GGMLQuantizationType as Type

from bench import synthetic_model, synthetic_numbers
from tests.weights import real_size
from tests.weights.test_standin import LARGEST_ERROR

SMALL = replace(
    GEOMETRY, num_hidden_layers=2, compress_ratios=(4, 128), num_hash_layers=1, draft_stages=1
)
IDS = np.random.RandomState(3).randint(3, 8192, 150).astype(np.int32)


class Pair(NamedTuple):
    release: Path
    gguf: Path


@pytest.fixture(scope="module", autouse=True)
def _pools_smaller_than_matrices() -> Iterator[None]:
    """Embedding and head go round their pools four times, as at V4 Flash's size."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(synthetic_numbers, "_MOST_VALUES", 2**19)
        yield


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    folder = tmp_path_factory.mktemp("synthetic")
    made = Pair(folder / "release", folder / "model.gguf")
    synthetic_model.write(made.release, SMALL, "release", TOKENIZER)
    synthetic_model.write(made.gguf, SMALL, "gguf", TOKENIZER)
    return made


def test_the_gguf_is_the_published_one() -> None:
    """Names, shapes and types are those of the published 2-bit file, and its 80.8 GiB."""
    planned = synthetic_model.gguf_plan(synthetic_model.CONFIG)
    listed = [(p.name, p.shape[::-1], Type[p.format.label]) for p in planned]
    assert sorted(listed) == sorted(real_size.gguf_tensors())
    total = synthetic_model.sizes(synthetic_model.CONFIG, "gguf").total()
    assert total == 86_714_777_664
    assert round(total / 2**30, 1) == 80.8


def test_the_release_is_the_published_one() -> None:
    """Names, types, shapes and bytes are those of the release, less its draft block."""
    tensors = list(layout.tensors(synthetic_model.CONFIG))
    entries = [entry for name, shape in tensors for entry in release.stored_as(name, shape)]
    theirs = [t for t in real_size.release_tensors() if not t[0].startswith("mtp.")]
    assert sorted(entry[:3] for entry in entries) == sorted(theirs)
    assert len(entries) == 69_187 - 1_575
    nbytes = [real_size.product(shape) * real_size.ITEM_BYTES[kind] for _, kind, shape in theirs]
    assert synthetic_model.sizes(synthetic_model.CONFIG, "release").total() == sum(nbytes)
    shards = synthetic_model.release_plan(synthetic_model.CONFIG)
    assert [tensor for shard in shards for tensor in shard] == tensors
    assert len(shards) == 45


@pytest.mark.parametrize("layers", [1, 3, 43])
def test_a_header_of_true_size_opens(tmp_path: Path, layers: int) -> None:
    """With a hole for its data, the file of the first layers opens as V4 Flash cut to them."""
    config = synthetic_model.first_layers(layers)
    path = tmp_path / "model.gguf"
    planned = synthetic_model.gguf_plan(config)
    listed = [(p.name, p.shape, Type[p.format.label]) for p in planned]
    gguf_writer.write_header(path, config, TOKENIZER, "headers only", listed)
    data_bytes = synthetic_model.sizes(config, "gguf").total()
    os.truncate(path, path.stat().st_size + data_bytes)
    with open_model(path) as files:
        assert files.config == config
        assert files.file_bytes - data_bytes < 10_000_000
        expert = files.tensor(f"layers.{layers - 1}.ffn.experts.255.w2.weight")
        assert (expert.shape, expert.format) == ((4096, 2048), Format.Q2_K)
    if layers == 43:
        assert config == ModelConfig.from_config_json(real_size.CONFIG)


def test_other_readers_agree(pair: Pair) -> None:
    """The `gguf` package lists the planned tensors, and reads from them what ds4 does."""
    listed = {tensor.name: tensor for tensor in gguf.GGUFReader(pair.gguf).tensors}
    planned = synthetic_model.gguf_plan(SMALL)
    assert list(listed) == [p.name for p in planned]
    with open_model(pair.gguf) as files:
        for p in planned:
            theirs = listed[p.name]
            assert tuple(theirs.shape.tolist())[::-1] == p.shape
            assert (theirs.tensor_type.name, theirs.n_bytes) == (p.format.label, p.nbytes)
            if p.format is Format.I32:
                continue
            values = gguf.quants.dequantize(theirs.data, theirs.tensor_type)
            ours = [dequantize(files.tensor(name)) for name, _ in p.sources]
            np.testing.assert_array_equal(values.reshape(-1), np.stack(ours).reshape(-1))


def test_both_layouts_hold_one_model(pair: Pair) -> None:
    """Every tensor is equal within the rounding of its formats, finite, and of sane scale; no
    row of a matrix is there twice."""
    with open_model(pair.release) as ours, open_model(pair.gguf) as theirs:
        assert ours.config == theirs.config == SMALL
        for name, shape in layout.tensors(SMALL):
            a, b = ours.tensor(name), theirs.tensor(name)
            if name.endswith("tid2eid"):
                np.testing.assert_array_equal(integers(a), integers(b))
                continue
            x, y = dequantize(a), dequantize(b)
            error = np.sqrt(np.mean((x - y) ** 2) / np.mean(y**2))
            assert error <= LARGEST_ERROR[a.format, b.format], name
            assert np.isfinite(x).all()
            assert np.isfinite(y).all()
            assert 0.01 < np.abs(y).max() < 10, name
            if len(shape) == 2:
                assert len(np.unique(b.data, axis=0)) == shape[0], name


def test_both_layouts_compute(pair: Pair) -> None:
    """ds4 loads both; their logits are finite, spread as meant, and differ by rounding alone."""
    first, second = (
        compute(load_network(path, device="cpu"), IDS, [100, 1]) for path in reversed(pair)
    )
    assert np.isfinite(first).all()
    assert np.isfinite(second).all()
    assert 1 < first.std() < 5
    assert np.corrcoef(first.ravel(), second.ravel())[0, 1] >= 0.95


def test_the_tokenizer_fills_the_vocabulary(pair: Pair, tmp_path: Path) -> None:
    """Each id of a larger vocabulary has a token; a tokenizer that is too large is refused."""
    larger = replace(SMALL, vocab_size=8200)
    path = tmp_path / "model.gguf"
    synthetic_model.write(path, larger, "gguf", TOKENIZER)
    with open_model(path) as files, open_model(pair.release) as other:
        tokenizer = Tokenizer.load(files.tokenizer_source)
        assert tokenizer.vocab_size == 8200
        assert tokenizer.decode([8199]) == "<unused_8199>"
        text = "Grüße, 世界! 12345"
        assert tokenizer.encode(text) == Tokenizer.load(other.tokenizer_source).encode(text)
    with pytest.raises(ConfigError, match="8,192 tokens, the model 100"):
        synthetic_model.write(tmp_path / "no", replace(SMALL, vocab_size=100), "gguf", TOKENIZER)
    assert [found.name for found in tmp_path.iterdir()] == ["model.gguf"]


def test_nothing_is_overwritten_unasked(pair: Pair, tmp_path: Path) -> None:
    """A seed gives the same bytes; what is there stays, unless forced, and then only our own."""
    path = tmp_path / "model.gguf"
    path.write_text("keep")
    with pytest.raises(ConfigError, match="exists"):
        synthetic_model.write(path, SMALL, "gguf", TOKENIZER)
    assert path.read_text() == "keep"
    synthetic_model.write(path, SMALL, "gguf", TOKENIZER, force=True)
    assert path.read_bytes() == pair.gguf.read_bytes()
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "notes.txt").write_text("keep")
    for layout_name in ("gguf", "release"):
        with pytest.raises(ConfigError):
            synthetic_model.write(mine, SMALL, layout_name, TOKENIZER, force=True)
    assert (mine / "notes.txt").read_text() == "keep"
    folder = shutil.copytree(pair.release, tmp_path / "release")
    (folder / "model-00001-of-00004.safetensors").unlink()
    synthetic_model.write(folder, SMALL, "release", TOKENIZER, force=True)
    for file in pair.release.iterdir():
        assert (folder / file.name).read_bytes() == file.read_bytes()
    assert sorted(found.name for found in tmp_path.iterdir()) == ["mine", "model.gguf", "release"]


def test_a_writer_that_fails_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk is seen before anything is written, with what would fit; an error on the way
    removes what there is, and a killed writer's rest goes with the next one."""
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=10 * 2**30))
    with pytest.raises(ConfigError) as caught:
        synthetic_model.write(tmp_path / "m.gguf", synthetic_model.CONFIG, "gguf", TOKENIZER)
    assert "80.8 GiB" in caught.value.message
    assert "--layers 4 " in caught.value.hint
    monkeypatch.undo()

    def fail(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(synthetic_model, "_flush", fail)
    with pytest.raises(OSError, match="no space left"):
        synthetic_model.write(tmp_path / "m.gguf", SMALL, "gguf", TOKENIZER)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    for pid in (gone.pid, os.getppid()):  # the second one may still be at work
        (tmp_path / f".m.gguf.{pid}.new").mkdir()
    synthetic_model.write(tmp_path / "m.gguf", SMALL, "gguf", TOKENIZER)
    left = sorted(found.name for found in tmp_path.iterdir())
    assert left == [f".m.gguf.{os.getppid()}.new", "m.gguf"]


def test_as_a_program(tmp_path: Path) -> None:
    """A dry run says what would be written and writes nothing; an error leaves with 78."""
    program = [sys.executable, synthetic_model.__file__, str(tmp_path / "m.gguf")]
    done = subprocess.run([*program, "--dry-run"], capture_output=True, text=True, check=True)
    assert "43 layers: 80.76 GiB = 86,714,777,664 bytes" in done.stdout
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "m.gguf").write_text("keep")
    done = subprocess.run([*program, "--layers", "1"], capture_output=True, text=True)
    assert done.returncode == 78
    assert "--force" in done.stderr
