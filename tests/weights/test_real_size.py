"""The real checkpoints in full size: counts, bytes, names, and the time it takes to open them."""

import time
from dataclasses import replace
from pathlib import Path

import gguf
import pytest
from ds4_daemon.model import layout
from ds4_daemon.model.config import ModelConfig
from ds4_daemon.model.files import open_model
from ds4_daemon.model.gguf_file import gguf_name
from ds4_daemon.model.tensor import Format, scale_shape

from tests.weights import real_size, tiny_files

OPEN_LIMIT_S = 3.0


@pytest.fixture(scope="module")
def gguf_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("real") / "DeepSeek-V4-Flash-2bit.gguf"
    real_size.write_gguf(path)
    return path


def test_release_arithmetic() -> None:
    """The published tensor list has 69,187 tensors of 159,609,485,896 bytes."""
    stored = list(real_size.release_tensors())
    assert len({name for name, _, _ in stored}) == len(stored) == 69_187
    assert sum(name.startswith("mtp.") for name, _, _ in stored) == 1_575
    sizes = [real_size.product(shape) * real_size.ITEM_BYTES[kind] for _, kind, shape in stored]
    assert sum(sizes) == 159_609_485_896


def test_layout_names_the_release() -> None:
    """Our layout of the real configuration, with its scales, is the release less its draft block,
    in names and in bytes."""
    config = ModelConfig.from_config_json(real_size.CONFIG)
    stored = {
        name: real_size.product(shape) * real_size.ITEM_BYTES[kind]
        for name, kind, shape in real_size.release_tensors()
        if not name.startswith("mtp.")
    }
    kinds = {name: kind for name, kind, _ in real_size.release_tensors()}
    formats = {"F8_E4M3": Format.FP8, "I8": Format.FP4}
    ours: dict[str, int] = {}
    for name, shape in layout.tensors(config):
        fmt = formats.get(kinds[name]) or Format[kinds[name]]
        ours[name] = real_size.product(shape[:-1]) * fmt.row_bytes(shape[-1])
        scale = scale_shape(fmt, shape)
        if scale:
            ours[name.removesuffix(".weight") + ".scale"] = real_size.product(scale)
    assert ours == stored


def test_the_real_release_opens(tmp_path: Path) -> None:
    """46 shards of 160 GB open within seconds, draft block ignored, types recognised."""
    folder = tmp_path / "DeepSeek-V4-Flash"
    real_size.write_release(folder, real_size.CONFIG, list(real_size.release_tensors()), 46)
    start = time.perf_counter()
    with open_model(folder) as files:
        assert time.perf_counter() - start < OPEN_LIMIT_S
        assert files.file_bytes > 159_609_485_896
        assert not any(name.startswith("mtp.") for name in files.names())
        expert = files.tensor("layers.42.ffn.experts.255.w2.weight")
        assert (expert.shape, expert.format) == ((4096, 2048), Format.FP4)
        assert expert.data.shape == (4096, 1024)
        assert expert.scale is not None and expert.scale.shape == (4096, 64)
        query = files.tensor("layers.2.attn.wq_b.weight")
        assert query.format is Format.FP8
        assert query.scale is not None and query.scale.shape == (256, 8)
        assert len(files.experts(0, "w1")) == 256


def test_the_later_release_opens(tmp_path: Path) -> None:
    """The 0731 release differs in 46 ratios and three draft stages of tensors we do not know."""
    config = {**real_size.CONFIG, "compress_ratios": [*real_size.RATIOS, 0, 0, 0]}
    tensors = list(real_size.release_tensors())
    drafts = [row for row in tensors if row[0].startswith("mtp.0.")]
    for stage in (1, 2):
        tensors += [(n.replace("mtp.0", f"mtp.{stage}"), kind, shape) for n, kind, shape in drafts]
    tensors.append(("mtp.0.main_proj.weight", "BF16", (4096, 12288)))
    folder = tmp_path / "DeepSeek-V4-Flash-0731"
    real_size.write_release(folder, config, tensors, 48)
    with open_model(folder) as files:
        april = ModelConfig.from_config_json(real_size.CONFIG)
        assert replace(files.config, draft_stages=1) == april
        assert files.config.is_0731
        assert not april.is_0731


def test_gguf_arithmetic() -> None:
    """The published 2-bit GGUF has 1,328 tensors of 86,714,777,664 bytes, and our names are its."""
    listed = list(real_size.gguf_tensors())
    assert len(listed) == 1_328
    data_bytes = 0
    for _, shape, kind in listed:
        block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
        nbytes = real_size.product(shape) // block * block_bytes
        data_bytes += -(-nbytes // 32) * 32  # each tensor begins on a multiple of 32
    assert data_bytes == 86_714_777_664
    config = ModelConfig.from_config_json(real_size.CONFIG)
    assert {gguf_name(name) for name, _ in layout.tensors(config)} == {n for n, _, _ in listed}


def test_the_real_gguf_opens(gguf_path: Path) -> None:
    """87 GB with 129,280 tokens and 127,741 merges open within seconds, as the same network."""
    start = time.perf_counter()
    with open_model(gguf_path) as files:
        assert time.perf_counter() - start < OPEN_LIMIT_S
        assert files.file_bytes > 86_714_777_664
        assert files.config == ModelConfig.from_config_json(real_size.CONFIG)
        expert = files.tensor("layers.42.ffn.experts.255.w3.weight")
        assert (expert.shape, expert.format) == ((2048, 4096), Format.IQ2_XXS)
        assert expert.data.shape == (2048, 1056)
        assert files.tensor("layers.7.ffn.experts.0.w2.weight").format is Format.Q2_K
        assert files.tensor("layers.0.ffn.gate.tid2eid").format is Format.I32
        assert files.tensor("head.weight").format is Format.Q8_0
        assert isinstance(files.tokenizer_source, dict)
        tokens = files.tokenizer_source["tokenizer.ggml.tokens"]
        assert len(tokens) == 129_280 and tokens[0] == "<｜begin▁of▁sentence｜>"
        assert len(files.tokenizer_source["tokenizer.ggml.merges"]) == 127_741


def test_gguf_table_of_offsets(tmp_path: Path) -> None:
    """Offsets, types and shapes are those that gguf's own reader finds."""
    path = tmp_path / "model.gguf"
    tiny_files.write_gguf(path, tiny_files.METADATA, tiny_files.arrays())
    reference = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    with open_model(path) as files:
        for name in files.names():
            theirs = reference[gguf_name(name)]
            data = theirs.data.reshape(-1)
            if ".ffn.experts." in name:
                data = theirs.data[int(name.split(".")[4])].reshape(-1)
            assert files.tensor(name).data.tobytes() == data.tobytes()
