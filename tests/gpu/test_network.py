"""The network on a real GPU.  Not part of `make test`: run `make test-gpu` where MLX has one."""

from pathlib import Path

import numpy as np
import pytest
from ds4_daemon import standin
from ds4_daemon.kernels.mlx_ops import MlxOps
from ds4_daemon.logits import compute
from ds4_daemon.model.load import load_network
from ds4_daemon.model.network import Segment, Want

from tests.model.random_models import CONFIGS, SEEDS, random_ids, random_tensors, write_release

VECTORS = np.load(Path(__file__).parents[1] / "vectors" / "network.npz")


@pytest.mark.parametrize("chunks", [[], [1], [5, 37, 1], [101, 3]])
@pytest.mark.parametrize("name", CONFIGS)
def test_logits_equal_transformers(tmp_path: Path, name: str, chunks: list[int]) -> None:
    """In float32 without rounding, logits equal the peer's within 1e-4."""
    config, seed = CONFIGS[name], SEEDS[name]
    folder = write_release(tmp_path, config, random_tensors(config, seed))
    network = load_network(folder, device="gpu", dtype="f32", rounding=False)
    expected = VECTORS[f"{name}/logits"]
    got = compute(network, random_ids(config, len(expected), seed), chunks)
    error = np.abs(got - expected).max()
    print(name, chunks, error)
    assert error < 1e-4


@pytest.mark.parametrize("name", ["fp8", "fp4"])
def test_rounding_functions_equal_the_reference_bit_for_bit(name: str) -> None:
    """FP8 and FP4 give the reference's results, ties and extremes included."""
    import mlx.core as mx

    ops = MlxOps(mx.float32)
    x, expected = VECTORS[f"{name}/in"], VECTORS[f"{name}/out"]
    got = ops.numpy(getattr(ops, f"{name}_round")(ops.asarray(x)))
    wrong = np.argwhere(got.view(np.int32) != expected.view(np.int32))
    print(name, len(wrong), [(x[i, j], expected[i, j], got[i, j]) for i, j in wrong[:5].tolist()])
    assert not len(wrong)


@pytest.mark.parametrize("layout", ["release", "gguf"])
def test_the_gpu_computes_what_the_cpu_does(tmp_path: Path, layout: str) -> None:
    """Quantized files give the CPU's logits within 1e-3 in float32, and closely in bfloat16."""
    path = getattr(standin.make(tmp_path / "stand-in"), layout)
    ids = np.random.RandomState(3).randint(3, 8192, 300).astype(np.int32)
    expected = compute(load_network(path, device="cpu", rounding=False), ids, [128, 1])
    for dtype, bound in (("f32", 1e-3), ("bf16", None)):
        network = load_network(path, device="gpu", dtype=dtype, rounding=False)
        got = compute(network, ids, [290, 1])
        error = np.abs(got - expected).max()
        agree = (got.argmax(-1) == expected.argmax(-1)).mean()
        correlation = np.corrcoef(got.ravel(), expected.ravel())[0, 1]
        print(layout, dtype, error, agree, correlation)
        if bound is None:
            assert correlation > 0.99
        else:
            assert error < bound


def test_a_batch_of_unlike_sequences_runs(tmp_path: Path) -> None:
    """Prompts and single tokens of sequences of different lengths go in one call, in bfloat16."""
    network = load_network(standin.make(tmp_path / "stand-in").gguf, device="gpu")
    ids = np.random.RandomState(4).randint(3, 8192, 700).astype(np.int32)
    states = [network.new_state() for _ in range(3)]
    network.forward([Segment(states[0], ids[:600], Want.LAST)])
    network.forward([Segment(states[1], ids[:30], Want.LAST)])
    out = network.forward(
        [
            Segment(states[0], ids[600:601], Want.LAST),
            Segment(states[1], ids[30:31], Want.LAST),
            Segment(states[2], ids[:200], Want.LAST),
        ]
    )
    assert all(logits is not None and np.isfinite(logits).all() for logits in out)
