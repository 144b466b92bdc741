"""The fingerprint of a model: another one for anything that moves cached values."""

import dataclasses
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from ds4_daemon.model import fingerprint
from ds4_daemon.model.config import ModelConfig
from ds4_daemon.model.files import open_model
from ds4_daemon.model.fingerprint import fingerprint_parts, tokenizer_digest, weights_digest
from ds4_runtime.kv_keys import canonical_json, fingerprint_digest

from tests.model.random_models import CONFIGS, random_tensors, write_release

CONFIG = CONFIGS["odd"]


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_release(tmp_path_factory.mktemp("m") / "m", CONFIG, random_tensors(CONFIG, 1))
    (folder / "tokenizer.json").write_text("{}")
    return folder


def digest(config: ModelConfig = CONFIG, **changes: Any) -> bytes:
    given: dict[str, Any] = {
        "weights": "aa",
        "tokenizer": "bb",
        "device": "cpu",
        "dtype": "f32",
        "rounding": True,
    }
    given |= {"layout_version": 1} | changes
    return fingerprint_digest(canonical_json(fingerprint_parts(config, **given)))


def test_anything_that_moves_values_is_another_fingerprint() -> None:
    """Each part and each number of the network counts."""
    digests = [
        digest(),
        digest(weights="ab"),
        digest(tokenizer="bc"),
        digest(device="gpu"),
        digest(device="mlx-cpu"),
        digest(dtype="bf16"),
        digest(rounding=False),
        digest(layout_version=2),
    ]
    for field in dataclasses.fields(ModelConfig):
        value = getattr(CONFIG, field.name)
        if isinstance(value, int | float):
            change: dict[str, Any] = {field.name: value + 1}
            digests.append(digest(dataclasses.replace(CONFIG, **change)))
    digests.append(digest(dataclasses.replace(CONFIG, compress_ratios=(4, 16, 0, 16, 0))))
    assert len(set(digests)) == len(digests) > 30


def test_the_numerics_epoch_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who changes kernels in a way that moves cached values raises one number."""
    before = digest()
    monkeypatch.setattr(fingerprint, "NUMERICS_EPOCH", fingerprint.NUMERICS_EPOCH + 1)
    assert digest() != before


def test_weights_are_named_by_their_bytes(release: Path, tmp_path: Path) -> None:
    """A copy elsewhere is the same model; one other bit anywhere is another."""
    with open_model(release) as files:
        first = weights_digest(files, tmp_path / "memo.json")
    copy = shutil.copytree(release, tmp_path / "copy")
    with open_model(copy) as files:
        assert weights_digest(files, tmp_path / "memo.json") == first
    data = bytearray((copy / "model.safetensors").read_bytes())
    data[-7] ^= 1
    (copy / "model.safetensors").write_bytes(data)
    with open_model(copy) as files:
        assert weights_digest(files, tmp_path / "memo.json") != first


def test_a_digest_is_remembered_until_the_file_changes(
    release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second start reads no weights; a file of another time is read again."""
    memo, reads = tmp_path / "cache" / "memo.json", list[Path]()
    honest = fingerprint._file_digest

    def counted(path: Path, size: int) -> str:
        reads.append(path)
        return honest(path, size)

    monkeypatch.setattr(fingerprint, "_file_digest", counted)
    with open_model(release) as files:
        first = weights_digest(files, memo)
        assert weights_digest(files, memo) == first
    assert len(reads) == 1
    os.utime(release / "model.safetensors", ns=(1, 1))
    with open_model(release) as files:
        assert weights_digest(files, memo) == first
    assert len(reads) == 2


@pytest.mark.parametrize("text", ["", "{", "[]", '{"x": 3}'])
def test_a_memo_that_cannot_be_read_is_made_again(release: Path, tmp_path: Path, text: str) -> None:
    """A memo cut short by a crash, or of something else, costs time and nothing more."""
    memo = tmp_path / "memo.json"
    memo.write_text(text)
    with open_model(release) as files:
        first = weights_digest(files, memo)
        assert weights_digest(files, tmp_path / "other.json") == first
    assert isinstance(json.loads(memo.read_text()), dict)


def test_a_memo_that_cannot_be_written_is_done_without(release: Path, tmp_path: Path) -> None:
    """Where there is no room for it, the digest is computed each time."""
    (tmp_path / "file").write_text("")
    with open_model(release) as files:
        assert weights_digest(files, tmp_path / "file" / "memo.json")


def test_the_tokenizer_counts_where_it_is_a_file_of_its_own(release: Path) -> None:
    """tokenizer.json is hashed; a GGUF holds its own, which is hashed with it."""
    with open_model(release) as files:
        first = tokenizer_digest(files)
    (release / "tokenizer.json").write_text("{} ")
    with open_model(release) as files:
        assert tokenizer_digest(files) != first
        files.tokenizer_source = {"tokenizer.ggml.model": "gpt2"}
        assert tokenizer_digest(files) == ""
