"""Files that cannot be used: each refused at opening with its own reason, a sentence and a hint."""

import contextlib
import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from ds4_daemon.errors import ModelFileError
from ds4_daemon.model.files import open_model

from tests.weights import tiny_files
from tests.weights.tiny_files import CONFIG, METADATA, Arrays

Spoil = Callable[[Path], object]


def refused(path: Path, reason: str, *says: str) -> None:
    """Opening raises this reason, with a hint, and a message that names what is wrong."""
    with pytest.raises(ModelFileError) as caught:
        open_model(path)
    error = caught.value
    assert error.reason == reason, error
    assert error.hint and error.message.endswith(".")
    for word in says:
        assert word in error.message


@pytest.fixture
def release(tmp_path: Path) -> Path:
    return tiny_files.write_release(tmp_path / "release", CONFIG, tiny_files.arrays())


@pytest.fixture
def gguf_path(tmp_path: Path) -> Path:
    return tiny_files.write_gguf(tmp_path / "model.gguf", METADATA, tiny_files.arrays())


def test_nothing_there(tmp_path: Path) -> None:
    """A path that does not exist is named."""
    refused(tmp_path / "absent", "MODEL_NOT_FOUND", "absent")
    refused(tmp_path / "absent.gguf", "MODEL_NOT_FOUND")
    (tmp_path / "dangling").symlink_to(tmp_path / "absent")
    refused(tmp_path / "dangling", "MODEL_NOT_FOUND")


def test_pipes_and_devices(tmp_path: Path) -> None:
    """What is no regular file is refused at once, not waited for."""
    os.mkfifo(tmp_path / "pipe.gguf")
    refused(tmp_path / "pipe.gguf", "MODEL_NOT_A_MODEL", "pipe.gguf")
    refused(Path("/dev/null"), "MODEL_NOT_A_MODEL", "/dev/null")


def test_not_a_model(tmp_path: Path) -> None:
    """Folders and files of another kind are refused for what they are."""
    (tmp_path / "folder").mkdir()
    refused(tmp_path / "folder", "MODEL_NOT_A_MODEL", "config.json")
    for name, content in (("empty", b""), ("text", b"hello"), ("other.gguf", b"GGML" * 100)):
        (tmp_path / name).write_bytes(content)
        refused(tmp_path / name, "MODEL_NOT_A_MODEL", "not a GGUF")
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 86720111488\n"
    (tmp_path / "pointer.gguf").write_bytes(pointer)
    refused(tmp_path / "pointer.gguf", "MODEL_NOT_A_MODEL")
    refused(Path("/dev/null"), "MODEL_NOT_A_MODEL")


@pytest.mark.parametrize(
    ("change", "reason", "word"),
    [
        ({"model_type": "deepseek_v3"}, "MODEL_ARCHITECTURE", "deepseek_v3"),
        ({"model_type": None}, "MODEL_ARCHITECTURE", "model_type"),
        ({"hidden_size": None}, "MODEL_CONFIG_MISSING", "hidden_size"),
        ({"compress_ratios": None}, "MODEL_CONFIG_MISSING", "compress_ratios"),
        ({"rope_scaling": None}, "MODEL_CONFIG_INVALID", "rope_scaling"),
        ({"rope_scaling": {"type": "linear", "factor": 2}}, "MODEL_CONFIG_INVALID", "linear"),
        ({"rope_scaling": {"type": "yarn"}}, "MODEL_CONFIG_MISSING", "factor"),
        ({"hidden_size": -1}, "MODEL_CONFIG_INVALID", "hidden_size"),
        ({"hidden_size": 0}, "MODEL_CONFIG_INVALID", "hidden_size"),
        ({"hidden_size": 32.5}, "MODEL_CONFIG_INVALID", "hidden_size"),
        ({"hidden_size": True}, "MODEL_CONFIG_INVALID", "hidden_size"),
        ({"hidden_size": "32"}, "MODEL_CONFIG_INVALID", "hidden_size"),
        ({"vocab_size": 10**15}, "MODEL_CONFIG_INVALID", "vocab_size"),
        ({"n_routed_experts": 2**31 - 1}, "MODEL_CONFIG_INVALID", "n_routed_experts"),
        ({"hc_sinkhorn_iters": 2**31 - 1}, "MODEL_CONFIG_INVALID", "hc_sinkhorn_iters"),
        ({"rms_norm_eps": float("nan")}, "MODEL_CONFIG_INVALID", "rms_norm_eps"),
        ({"swiglu_limit": 0}, "MODEL_CONFIG_INVALID", "swiglu_limit"),
        ({"compress_ratios": [0, 4]}, "MODEL_CONFIG_INVALID", "compress_ratios"),
        ({"compress_ratios": [0, 4, -4, 0]}, "MODEL_CONFIG_INVALID", "compress_ratios"),
        ({"compress_ratios": 4}, "MODEL_CONFIG_INVALID", "compress_ratios"),
        ({"o_groups": 3}, "MODEL_CONFIG_INVALID", "o_groups"),
        ({"qk_rope_head_dim": 7}, "MODEL_CONFIG_INVALID", "qk_rope_head_dim"),
        ({"qk_rope_head_dim": 64}, "MODEL_CONFIG_INVALID", "qk_rope_head_dim"),
        ({"num_experts_per_tok": 5}, "MODEL_CONFIG_INVALID", "num_experts_per_tok"),
        ({"num_hash_layers": 9}, "MODEL_CONFIG_INVALID", "num_hash_layers"),
        ({"num_key_value_heads": 8}, "MODEL_CONFIG_INVALID", "num_key_value_heads"),
        ({"n_shared_experts": 2}, "MODEL_CONFIG_INVALID", "n_shared_experts"),
        ({"scoring_func": "sigmoid"}, "MODEL_CONFIG_INVALID", "scoring_func"),
        ({"tie_word_embeddings": True}, "MODEL_CONFIG_INVALID", "tie_word_embeddings"),
        ({"hidden_size": 64}, "MODEL_TENSOR_SHAPE", "embed.weight"),
        ({"num_hidden_layers": 5}, "MODEL_TENSOR_MISSING", "layers.4"),
    ],
    ids=lambda value: json.dumps(value) if isinstance(value, dict) else "",
)
def test_config_with_nonsense(
    release: Path, change: dict[str, Any], reason: str, word: str
) -> None:
    """Missing, mistyped, impossible or foreign values of config.json are named."""
    (release / "config.json").write_text(json.dumps({**CONFIG, **change}))
    refused(release, reason, word)


@pytest.mark.parametrize("text", ["", "{", "[]", '"x"', "[" * 100_000, "\xff"])
def test_config_that_is_not_json(release: Path, text: str) -> None:
    """A config.json that is no JSON object is refused, whatever it is."""
    (release / "config.json").write_bytes(text.encode("latin-1"))
    refused(release, "MODEL_CONFIG_INVALID", "config.json")


def header_cases() -> dict[str, tuple[Spoil, str]]:
    def weights(folder: Path) -> Path:
        return folder / "model.safetensors"

    def edit(change: Callable[[dict[str, Any]], object]) -> Spoil:
        def spoil(folder: Path) -> None:
            header = tiny_files.header_of(weights(folder))
            change(header)
            tiny_files.put_header(weights(folder), header)

        return spoil

    def cut(size: int) -> Spoil:
        return lambda f: weights(f).write_bytes(weights(f).read_bytes()[:size])

    def begin(data: bytes) -> Spoil:
        return lambda f: weights(f).write_bytes(data)

    def dtype(name: str, value: str) -> Spoil:
        return edit(lambda h: h[name].update(dtype=value))

    wide = struct.pack("<Q", 1 << 60)
    return {
        "no weights": (lambda f: weights(f).unlink(), "MODEL_WEIGHTS_MISSING"),
        "empty": (cut(0), "MODEL_TRUNCATED"),
        "cut in the length": (cut(5), "MODEL_TRUNCATED"),
        "cut in the header": (cut(500), "MODEL_TRUNCATED"),
        "cut in the data": (cut(-1), "MODEL_TRUNCATED"),
        "absurd header length": (begin(wide + b"{}" * 100), "MODEL_HEADER_INVALID"),
        "text": (begin(b"version https://git-lfs.github.com"), "MODEL_HEADER_INVALID"),
        "header of another shape": (begin(struct.pack("<Q", 2) + b"[]"), "MODEL_HEADER_INVALID"),
        "header that is no JSON": (begin(struct.pack("<Q", 2) + b"{{"), "MODEL_HEADER_INVALID"),
        "entry without offsets": (
            edit(lambda h: h["norm.weight"].pop("data_offsets")),
            "MODEL_HEADER_INVALID",
        ),
        "offsets backwards": (
            edit(lambda h: h["norm.weight"]["data_offsets"].reverse()),
            "MODEL_HEADER_INVALID",
        ),
        "negative axis": (
            edit(lambda h: h["norm.weight"].update(shape=[-32])),
            "MODEL_HEADER_INVALID",
        ),
        "bytes that do not fit": (
            edit(lambda h: h["norm.weight"].update(shape=[31])),
            "MODEL_HEADER_INVALID",
        ),
        "offsets that are no whole numbers": (
            edit(lambda h: h["norm.weight"].update(data_offsets=[0.0, 128.0])),
            "MODEL_HEADER_INVALID",
        ),
        "FP8 without axes": (
            edit(lambda h: h["layers.0.attn.wq_a.weight"].update(dtype="F8_E4M3", shape=[])),
            "MODEL_HEADER_INVALID",
        ),
        "FP8 with a scale of too few bytes": (
            edit(
                lambda h: h.update(
                    {
                        "layers.0.attn.wq_a.scale": {
                            "dtype": "F8_E8M0",
                            "shape": [1, 1],
                            "data_offsets": [4, 4],
                        },
                        "layers.0.attn.wq_a.weight": {
                            "dtype": "F8_E4M3",
                            "shape": [32, 32],
                            "data_offsets": [0, 1024],
                        },
                    }
                )
            ),
            "MODEL_HEADER_INVALID",
        ),
        "missing tensor": (edit(lambda h: h.pop("norm.weight")), "MODEL_TENSOR_MISSING"),
        "wrong shape": (
            edit(lambda h: h["head.weight"].update(shape=[32, 96])),
            "MODEL_TENSOR_SHAPE",
        ),
        "scalar": (
            edit(lambda h: h["hc_head_scale"].update(shape=[])),
            "MODEL_TENSOR_SHAPE",
        ),
        "unknown type": (dtype("norm.weight", "F8_E5M2"), "MODEL_TENSOR_TYPE"),
        "table of floats": (
            edit(lambda h: h["layers.0.ffn.gate.tid2eid"].update(dtype="F32", shape=[96, 4])),
            "MODEL_TENSOR_SHAPE",
        ),
        "norm of integers": (dtype("norm.weight", "I32"), "MODEL_TENSOR_TYPE"),
        "FP8 without scale": (
            dtype("layers.0.attn.wq_a.weight", "F8_E4M3"),
            "MODEL_TENSOR_MISSING",
        ),
        "FP8 with a scale of another shape": (
            edit(
                lambda h: h.update(
                    {
                        "layers.0.attn.wq_a.scale": {
                            "dtype": "F8_E8M0",
                            "shape": [2, 1],
                            "data_offsets": [0, 2],
                        },
                        "layers.0.attn.wq_a.weight": {
                            "dtype": "F8_E4M3",
                            "shape": [32, 32],
                            "data_offsets": [0, 1024],
                        },
                    }
                )
            ),
            "MODEL_TENSOR_SHAPE",
        ),
    }


@pytest.mark.parametrize("case", header_cases())
def test_bad_safetensors(release: Path, case: str) -> None:
    """Weight files that are cut, damaged, incomplete or of other shapes and types are refused."""
    spoil, reason = header_cases()[case]
    spoil(release)
    refused(release, reason)


@pytest.mark.parametrize(
    ("index", "reason"),
    [
        ({"weight_map": {"norm.weight": "absent.safetensors"}}, "MODEL_WEIGHTS_MISSING"),
        ({"weight_map": {"norm.weight": "../../x.safetensors"}}, "MODEL_HEADER_INVALID"),
        ({"weight_map": {"norm.weight": 3}}, "MODEL_HEADER_INVALID"),
        ({"weight_map": {}}, "MODEL_HEADER_INVALID"),
        ({}, "MODEL_HEADER_INVALID"),
    ],
)
def test_bad_index(release: Path, index: dict[str, Any], reason: str) -> None:
    """An index that names absent files, files elsewhere or none is refused."""
    (release / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(release, reason)


def without(name: str) -> Arrays:
    return {n: values for n, values in tiny_files.arrays().items() if not n.startswith(name)}


@pytest.mark.parametrize(
    ("change", "reason", "word"),
    [
        ({"embedding_length": None}, "MODEL_CONFIG_MISSING", "hidden_size"),
        ({"embedding_length": "many"}, "MODEL_CONFIG_INVALID", "hidden_size"),
        ({"block_count": "many"}, "MODEL_CONFIG_INVALID", "num_hidden_layers"),
        ({"attention.head_count_kv": [1, 2]}, "MODEL_CONFIG_INVALID", "head_count_kv"),
        ({"expert_gating_func": 2}, "MODEL_CONFIG_INVALID", "expert_gating_func"),
        ({"rope.scaling.type": "none"}, "MODEL_CONFIG_INVALID", "rope.scaling.type"),
        ({"swiglu_clamp_exp": [10.0, 7.0, 10.0, 10.0]}, "MODEL_CONFIG_INVALID", "swiglu_limit"),
        ({"attention.compress_ratios": [0, 4]}, "MODEL_CONFIG_INVALID", "compress_ratios"),
        ({"attention.compress_ratios": [0.5] * 4}, "MODEL_CONFIG_INVALID", "compress_ratios"),
        ({"attention.head_count": 8}, "MODEL_TENSOR_SHAPE", "wq_b"),
    ],
    ids=lambda value: json.dumps(value) if isinstance(value, dict) else "",
)
def test_gguf_metadata_with_nonsense(
    tmp_path: Path, change: dict[str, Any], reason: str, word: str
) -> None:
    """Missing, mistyped or foreign metadata is named, by the name that config.json has for it."""
    metadata = {key: value for key, value in {**METADATA, **change}.items() if value is not None}
    path = tiny_files.write_gguf(tmp_path / "x.gguf", metadata, tiny_files.arrays())
    refused(path, reason, word)


def test_gguf_of_another_architecture(tmp_path: Path) -> None:
    """A GGUF of another model is named for what it is."""
    path = tiny_files.write_gguf(tmp_path / "x.gguf", {}, tiny_files.arrays(), "llama")
    refused(path, "MODEL_ARCHITECTURE", "llama")


def test_gguf_in_parts(tmp_path: Path) -> None:
    """One part of a split GGUF says how to join it."""
    path = tiny_files.write_gguf(
        tmp_path / "x.gguf",
        METADATA,
        tiny_files.arrays(),
        edit=lambda writer: writer.add_uint16("split.count", 4),
    )
    refused(path, "MODEL_SPLIT", "4 parts")


@pytest.mark.parametrize(
    "name", ["norm.weight", "layers.1.attn.indexer.wq_b", "layers.2.ffn.experts.", "hc_head_fn"]
)
def test_gguf_without_a_tensor(tmp_path: Path, name: str) -> None:
    """A tensor that is not there is named as the release names it."""
    path = tiny_files.write_gguf(tmp_path / "x.gguf", METADATA, without(name))
    refused(path, "MODEL_TENSOR_MISSING", name)


def test_gguf_with_too_few_experts(tmp_path: Path) -> None:
    """A stack of fewer experts than the configuration says is refused."""
    path = tiny_files.write_gguf(tmp_path / "x.gguf", METADATA, without("layers.2.ffn.experts.3."))
    refused(path, "MODEL_TENSOR_MISSING", "layers.2.ffn.experts.3.")


def test_gguf_of_wrong_shapes(tmp_path: Path) -> None:
    """Transposed and stretched tensors are refused."""
    for name, shape in (("head.weight", (32, 96)), ("layers.1.ffn.experts.0.w1.weight", (32, 64))):
        arrays = tiny_files.arrays()
        others = [n for n in arrays if ".experts." in name and ".w1." in n and "layers.1." in n]
        for changed in {name, *(n for n in others if ".experts." in n)}:
            if "shared" not in changed:
                arrays[changed] = np.zeros(shape, np.float32)
        path = tiny_files.write_gguf(tmp_path / "x.gguf", METADATA, arrays)
        refused(path, "MODEL_TENSOR_SHAPE", name)


@pytest.mark.parametrize("number", [2, 14, 20, 200])
def test_gguf_of_types_we_do_not_decode(gguf_path: Path, number: int) -> None:
    """Q4_0, Q6_K, IQ4_NL and unheard-of types are refused with the list of those that work."""
    data = bytearray(gguf_path.read_bytes())
    name = b"output_norm.weight"
    at = data.index(struct.pack("<Q", len(name)) + name) + 8 + len(name) + 4 + 8
    assert struct.unpack_from("<I", data, at) == (0,)
    struct.pack_into("<I", data, at, number)
    gguf_path.write_bytes(data)
    refused(gguf_path, "MODEL_TENSOR_TYPE", "norm.weight", f"type {number},")


def test_a_foreign_type_of_a_foreign_tensor(tmp_path: Path) -> None:
    """A tensor that the network has no use for may be of any type."""

    def add_draft(writer: gguf.GGUFWriter) -> None:
        kind = gguf.GGMLQuantizationType.Q6_K
        writer.add_tensor("mtp.0.weight", np.zeros((2, 210), np.uint8), raw_dtype=kind)

    path = tmp_path / "x.gguf"
    tiny_files.write_gguf(path, METADATA, tiny_files.arrays(), edit=add_draft)
    with open_model(path) as files:
        assert "mtp.0.weight" not in files


def test_gguf_cut_anywhere(gguf_path: Path) -> None:
    """Wherever a GGUF ends early, that is what is said; no cut is mistaken for a model."""
    data = gguf_path.read_bytes()
    cuts = np.random.default_rng(0).integers(5, len(data) - 32, 150).tolist()
    for size in [4, 8, 16, 23, 24, 100, *cuts, len(data) - 32]:
        gguf_path.write_bytes(data[:size])
        refused(gguf_path, "MODEL_TRUNCATED", "cut short")


def test_gguf_headers_of_noise(gguf_path: Path) -> None:
    """A damaged header opens or is refused by name, whichever byte is wrong; nothing else."""
    data = gguf_path.read_bytes()
    rng = np.random.default_rng(1)
    header = data.index(b"output_norm.weight")
    for at in rng.integers(4, header + 2000, 300).tolist():
        spoiled = bytearray(data)
        spoiled[at] = int(rng.integers(0, 256))
        gguf_path.write_bytes(spoiled)
        with contextlib.suppress(ModelFileError):
            open_model(gguf_path).close()


@pytest.mark.parametrize("version", [1, 4, 0x03000000])
def test_gguf_of_another_version(gguf_path: Path, version: int) -> None:
    """Old, future and big-endian files are refused."""
    data = bytearray(gguf_path.read_bytes())
    struct.pack_into("<I", data, 4, version)
    gguf_path.write_bytes(data)
    refused(gguf_path, "MODEL_HEADER_INVALID", "version")
