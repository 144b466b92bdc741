"""The stand-in model: whole or absent, the same numbers twice, and true to both layouts."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import gguf
import numpy as np
import pytest
from ds4_daemon.errors import ConfigError
from ds4_daemon.model import layout
from ds4_daemon.model.files import ModelFiles, open_model
from ds4_daemon.model.quant import dequantize, integers
from ds4_daemon.model.tensor import Format
from ds4_daemon.standin import TOKENIZER, StandIn, make
from ds4_daemon.standin.drawing import GEOMETRY
from safetensors import safe_open
from tokenizers import Tokenizer

from models.standin import make_tokenizer

# The largest relative error (rms) of a tensor in each pair of formats: 3 bits of mantissa in FP8,
# one in FP4, against values that are exact in the GGUF (experts) or nearly so (Q8_0).
LARGEST_ERROR = {
    (Format.BF16, Format.F32): 0,
    (Format.F32, Format.F32): 0,
    (Format.BF16, Format.F16): 1e-7,  # float16 rounds what lies under 2^-14
    (Format.F32, Format.F16): 1e-7,
    (Format.BF16, Format.Q8_0): 0.01,
    (Format.FP8, Format.Q8_0): 0.03,
    (Format.FP8, Format.F16): 0.03,
    (Format.FP4, Format.IQ2_XXS): 0.12,
    (Format.FP4, Format.Q2_K): 0.12,
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> StandIn:
    return make(tmp_path_factory.mktemp("stand-in") / "model")


def digest(folder: Path) -> dict[str, int]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hash(path.read_bytes()) for path in files}


def test_both_files_hold_one_model(made: StandIn) -> None:
    """Every tensor of the release equals the GGUF's within the rounding of their two formats."""
    seen = set()
    with open_model(made.release) as release, open_model(made.gguf) as packed:
        assert release.config == packed.config == GEOMETRY
        for name in release.names():
            ours, theirs = release.tensor(name), packed.tensor(name)
            if name.endswith("tid2eid"):
                np.testing.assert_array_equal(integers(ours), integers(theirs))
                continue
            pair = (ours.format, theirs.format)
            seen.add(pair)
            a, b = dequantize(ours), dequantize(theirs)
            error = np.sqrt(np.mean((a - b) ** 2) / np.mean(b**2))
            assert error <= LARGEST_ERROR[pair], (name, pair)
    assert seen == set(LARGEST_ERROR)


def test_numbers_that_would_show(made: StandIn) -> None:
    """No parameter that transformers leaves at 0 or 1 is constant, and none is out of scale."""
    with open_model(made.gguf) as files:
        for name, _ in layout.tensors(files.config):
            if not name.endswith("tid2eid"):
                values = dequantize(files.tensor(name))
                assert np.isfinite(values).all()
                assert 0.01 < np.abs(values).max() < 10, name
                assert values.size == 1 or values.std() > 0.01, name


def test_experts_by_token(made: StandIn) -> None:
    """Hash layers give each token six distinct experts, and each expert the same number."""
    with open_model(made.gguf) as files:
        for layer in range(3):
            table = integers(files.tensor(f"layers.{layer}.ffn.gate.tid2eid"))
            assert table.min() == 0 and table.max() == 15
            assert (np.diff(np.sort(table, axis=1), axis=1) > 0).all()
            assert set(np.bincount(table.ravel()).tolist()) == {8192 * 6 // 16}


def test_other_readers_agree(made: StandIn) -> None:
    """The safetensors library and gguf's reader open the files and see the types of the release
    and of the published 2-bit file."""
    shards = sorted(made.release.glob("*.safetensors"))
    assert len(shards) == 2
    index = json.loads((made.release / "model.safetensors.index.json").read_text())
    kinds = {}
    for shard in shards:
        with safe_open(shard, "numpy") as opened:
            for name in opened.keys():  # noqa: SIM118  # not a dict
                assert index["weight_map"][name] == shard.name
                kinds[name] = opened.get_slice(name).get_dtype()
    assert set(kinds) == set(index["weight_map"])
    expert = "layers.3.ffn.experts.7.w2"
    assert (kinds[f"{expert}.weight"], kinds[f"{expert}.scale"]) == ("I8", "F8_E8M0")
    assert kinds["layers.0.attn.wo_a.weight"] == "F8_E4M3"
    assert kinds["layers.2.attn.compressor.wkv.weight"] == kinds["head.weight"] == "BF16"
    types = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(made.gguf).tensors}
    assert types["blk.3.ffn_gate_exps.weight"] == types["blk.3.ffn_up_exps.weight"] == "IQ2_XXS"
    assert types["blk.3.ffn_down_exps.weight"] == "Q2_K"
    assert types["blk.0.attn_output_a.weight"] == types["output.weight"] == "Q8_0"
    assert types["blk.2.indexer.attn_q_b.weight"] == types["token_embd.weight"] == "F16"
    assert types["blk.0.ffn_gate_tid2eid.weight"] == "I32"


def test_the_tokenizer(made: StandIn) -> None:
    """Both carry the 8,192 tokens: specials by their true spelling at low ids, all bytes."""
    tokenizer = Tokenizer.from_file(str(made.release / "tokenizer.json"))
    assert tokenizer.get_vocab_size() == 8192
    for number, text in enumerate(
        ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>")
    ):
        assert tokenizer.token_to_id(text) == number
    for special in ("<｜User｜>", "<｜Assistant｜>", "<think>", "</think>", "｜DSML｜"):
        [number] = tokenizer.encode(special).ids
        assert number < 100 and tokenizer.token_to_id(special) == number
    text = "Grüße, 世界! \U0001f680 12345\n\tdef f(x): return x\x00\x7f"
    assert tokenizer.decode(tokenizer.encode(text).ids) == text
    with open_model(made.gguf) as files:
        assert isinstance(files.tokenizer_source, dict)
        tokens = files.tokenizer_source["tokenizer.ggml.tokens"]
    assert tokens == [tokenizer.id_to_token(number) for number in range(8192)]


def test_the_same_bytes_every_time(made: StandIn, tmp_path: Path) -> None:
    """A seed gives the same files, byte for byte; another seed gives others."""
    again = make(tmp_path / "again")
    assert digest(again.release.parent) == digest(made.release.parent)
    other = make(tmp_path / "other", seed=1)
    assert other.gguf.read_bytes() != again.gguf.read_bytes()


def test_found_again(made: StandIn) -> None:
    """A whole stand-in is used as it lies, at once."""
    before = made.gguf.stat()
    start = time.perf_counter()
    assert make(made.gguf.parent) == made
    assert time.perf_counter() - start < 0.1
    assert made.gguf.stat().st_mtime_ns == before.st_mtime_ns
    assert os.listdir(made.gguf.parent.parent) == ["model"]  # noqa: PTH208  # nothing beside it


def test_another_seed_takes_its_place(tmp_path: Path) -> None:
    """The folder is replaced if it holds the stand-in of another seed."""
    make(tmp_path / "model", seed=1)
    with open_model(make(tmp_path / "model", seed=2).gguf) as files:
        assert "seed 2" in name_of(files)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def name_of(files: ModelFiles) -> str:
    assert isinstance(files.tokenizer_source, dict)
    return str(files.tokenizer_source["general.name"])


def test_killed_half_way(tmp_path: Path) -> None:
    """A maker that is killed leaves no folder of that name, and the next one succeeds."""
    command = [sys.executable, "-m", "ds4_daemon.standin", str(tmp_path / "model")]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 20
    while not list(tmp_path.glob(".stand-in-*/new/release/*.safetensors")):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "model").exists()
    open_model(make(tmp_path / "model").gguf).close()


def test_several_make_it_at_once(tmp_path: Path) -> None:
    """Makers that race all end with the whole model."""
    command = [sys.executable, "-m", "ds4_daemon.standin", str(tmp_path / "model")]
    racing = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    for process in racing:
        out, error = process.communicate(timeout=60)
        assert process.returncode == 0, error
        assert out.split() == [
            str(tmp_path / "model/release"),
            str(tmp_path / "model/stand-in.gguf"),
        ]
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_folder_with_something_else(tmp_path: Path) -> None:
    """Nothing of anybody's is overwritten."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    with pytest.raises(ConfigError, match="something else"):
        make(tmp_path / "mine")
    assert (tmp_path / "mine" / "notes.txt").read_text() == "keep"
    (tmp_path / "file").write_text("keep")
    with pytest.raises(ConfigError):
        make(tmp_path / "file")
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["file", "mine"]


def test_the_packaged_tokenizer_is_what_the_script_makes() -> None:
    """The committed file is the script's output from the published tokenizer, under 300 kB."""
    assert TOKENIZER.read_text("utf-8") == make_tokenizer.build()
    assert TOKENIZER.stat().st_size < 300_000


def test_what_was_lost_is_made_again(tmp_path: Path) -> None:
    """A folder whose model was deleted heals, and what a killed process left is swept."""
    made = make(tmp_path / "s")
    whole = made.gguf.read_bytes()
    made.gguf.unlink()
    left, fresh = tmp_path / ".stand-in-old", tmp_path / ".stand-in-new"
    left.mkdir()
    fresh.mkdir()
    os.utime(left, (0, 0))
    assert make(tmp_path / "s").gguf.read_bytes() == whole
    assert not left.exists()
    assert fresh.exists()


def test_what_was_cut_short_is_made_again(tmp_path: Path) -> None:
    """A folder heals whichever of its files is absent or has another size."""
    made = make(tmp_path / "s")
    before = digest(tmp_path / "s")
    [first, *_] = sorted(made.release.glob("*.safetensors"))
    os.truncate(first, 1000)
    assert make(tmp_path / "s") == made
    assert digest(tmp_path / "s") == before
    (made.release / "tokenizer.json").unlink()
    assert make(tmp_path / "s") == made
    assert digest(tmp_path / "s") == before
