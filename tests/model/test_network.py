"""The network against transformers, on random models that cover every kind of layer."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from ds4_daemon.errors import RequestError
from ds4_daemon.kernels.mlx_ops import MlxOps
from ds4_daemon.kernels.numpy_ops import NumpyOps
from ds4_daemon.kernels.ops import Ops
from ds4_daemon.logits import compute
from ds4_daemon.model.load import load_network
from ds4_daemon.model.network import Network, Segment, Want
from ds4_daemon.model.weights_numpy import product

from tests.model.random_models import CONFIGS, SEEDS, random_ids, random_tensors, write_release

VECTORS = np.load(Path(__file__).parents[1] / "vectors" / "network.npz")
# Lengths that fall inside, on and across windows, compression windows and each other.
CHUNKINGS = [[], [1], [37], [5, 37, 1], [128, 1], [101, 3]]


def mlx_ops() -> MlxOps:
    import mlx.core as mx

    mx.set_default_device(mx.cpu)
    return MlxOps(mx.float32)


BACKENDS: dict[str, Callable[[], Ops]] = {"cpu": NumpyOps, "mlx-cpu": mlx_ops}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The random models in the released layout."""
    root = tmp_path_factory.mktemp("models")
    return {
        name: write_release(root / name, config, random_tensors(config, SEEDS[name]))
        for name, config in CONFIGS.items()
    }


@pytest.mark.parametrize("device", BACKENDS)
@pytest.mark.parametrize("name", CONFIGS)
def test_logits_equal_transformers(folders: dict[str, Path], name: str, device: str) -> None:
    """Without rounding, logits equal the peer's within 1e-4 however the prompt is cut."""
    network = load_network(folders[name], device=device, dtype="f32", rounding=False)
    expected = VECTORS[f"{name}/logits"]
    ids = random_ids(network.config, len(expected), SEEDS[name])
    # MLX's matrix products on a CPU are too slow for token by token on every model.
    chunkings = CHUNKINGS if device == "cpu" else [[], [5, 37, 1][:2]]
    for chunks in chunkings:
        got = compute(network, ids, chunks)
        assert np.abs(got - expected).max() < 1e-4, chunks


@pytest.fixture(scope="module")
def rounded(tmp_path_factory: pytest.TempPathFactory) -> list[Network]:
    """The models of the vectors with rounding, on the CPU."""
    root, config = tmp_path_factory.mktemp("rounded"), CONFIGS["small"]
    return [
        load_network(
            write_release(root / str(seed), config, random_tensors(config, seed)), device="cpu"
        )
        for seed in VECTORS["rounded/seeds"].tolist()
    ]


def test_rounded_logits_agree_with_the_peer(rounded: list[Network]) -> None:
    """With rounding, the same token is the likeliest at 99 % of 3 × 2,048 positions or more."""
    expected = VECTORS["rounded/top1"]
    ids = random_ids(CONFIGS["small"], expected.shape[1], 99)
    top1 = np.stack([compute(network, ids, [512]).argmax(-1) for network in rounded])
    assert top1.shape == expected.shape
    assert (top1 == expected).mean() >= 0.99


def test_first_layers_codes_equal_the_peers(rounded: list[Network]) -> None:
    """With rounding, 99.9 % of the FP8 codes of the first layer's rows or more are equal."""
    codes, exponents = VECTORS["rounded/codes"], VECTORS["rounded/exponents"]
    ids = random_ids(CONFIGS["small"], codes.shape[1], 99)
    rows = np.stack([first_layer_rows(network, ids) for network in rounded])
    expected = e4m3_values()[codes] * np.exp2(exponents.astype(np.float32))
    assert rows.shape == expected.shape
    assert (rows == expected).mean() >= 0.999


def first_layer_rows(network: Network, ids: np.ndarray) -> np.ndarray:
    """The unrotated channels that the first layer keeps of every token, read from the state."""
    state, seen = network.new_state(), []
    step = network.config.sliding_window - 1  # what a window holds between steps
    for at in range(0, len(ids), step):
        piece = ids[at : at + step]
        network.forward([Segment(state, piece, Want.NONE)])
        seen.append(np.array(state.layers[0].window.view()[-len(piece) :]))
    return np.concatenate(seen)[:, : -network.config.qk_rope_head_dim]


def e4m3_values() -> np.ndarray:
    """The number of each e4m3 code, from the format's definition (bias 7, no infinities)."""
    code = np.arange(256)
    exponent, mantissa = (code >> 3) & 15, (code & 7).astype(np.float32)
    normal = (1 + mantissa / 8) * np.exp2(exponent - 7.0)
    value = np.where(exponent == 0, mantissa / 8 * 2.0**-6, normal)
    return (np.where(code & 128, -value, value)).astype(np.float32)


@pytest.mark.parametrize("device", BACKENDS)
@pytest.mark.parametrize("name", ["fp8", "fp4", "hadamard"])
def test_rounding_functions_equal_the_reference_bit_for_bit(name: str, device: str) -> None:
    """FP8, FP4 and Hadamard give the reference's results on random values, ties and extremes."""
    ops = BACKENDS[device]()
    function = ops.hadamard if name == "hadamard" else getattr(ops, f"{name}_round")
    x, expected = VECTORS[f"{name}/in"], VECTORS[f"{name}/out"]
    with np.errstate(over="ignore"):  # the largest block rounds up to infinity, as the peer's does
        got = ops.numpy(function(ops.asarray(x)))
    if name == "hadamard":
        # Sums of 128 terms come out in whichever order a BLAS likes; single terms are exact.
        assert np.abs(got - expected).max() <= 1e-6
        assert np.array_equal(got[16:], expected[16:])
    else:
        assert np.array_equal(got.view(np.int32), expected.view(np.int32))


@pytest.mark.parametrize(("device", "bound"), [("cpu", 0.0), ("mlx-cpu", 1e-4)])
def test_a_sequence_does_not_depend_on_its_company(
    folders: dict[str, Path], device: str, bound: float
) -> None:
    """A sequence's logits are the same bits on a CPU alone and in any mixed batch.

    MLX promises no order of summing, so there they are the same within what sums in float32 lose;
    not after rounding, which makes a last bit a step of FP8.
    """
    network = load_network(folders["small"], device=device, dtype="f32", rounding=device == "cpu")
    plans = {0: [90, 1, 1, 1], 1: [17, 1, 1, 1], 2: [1, 1, 40, 1], 3: [64, 90, 1, 5]}
    ids = {i: random_ids(network.config, sum(plan), i) for i, plan in plans.items()}

    def segments(members: list[int], step: int, states: dict[int, object]) -> list[Segment]:
        out = []
        for i in members:
            at = sum(plans[i][:step])
            out.append(Segment(states[i], ids[i][at : at + plans[i][step]], Want.LAST))  # type: ignore[arg-type]
        return out

    alone = {}
    for i in plans:
        states: dict[int, object] = {i: network.new_state()}
        alone[i] = [network.forward(segments([i], step, states))[0] for step in range(4)]
    states = {i: network.new_state() for i in plans}
    for step in range(4):
        together = network.forward(segments(list(plans), step, states))
        for i, logits in zip(plans, together, strict=True):
            expected = alone[i][step]
            assert logits is not None
            assert expected is not None
            assert np.abs(logits - expected).max() <= bound, (i, step)


def test_a_token_does_not_depend_on_how_many_are_decoded(folders: dict[str, Path]) -> None:
    """Nine sequences give the same bits decoded one by one, two and seven at once, or all."""
    network = load_network(folders["small"], device="cpu")
    ids = [random_ids(network.config, 30 + i, i) for i in range(9)]

    def decode(groups: list[range]) -> list[np.ndarray | None]:
        states = [network.new_state() for _ in ids]
        for state, prompt in zip(states, ids, strict=True):
            network.forward([Segment(state, prompt[:-3], Want.NONE)])
        return [
            row
            for at in (-3, -2, -1)
            for group in groups
            for row in network.forward(
                [Segment(states[i], ids[i][at : len(ids[i]) + at + 1], Want.LAST) for i in group]
            )
        ]

    alone = decode([range(i, i + 1) for i in range(9)])
    for groups in ([range(2), range(2, 9)], [range(9)]):
        assert all(np.array_equal(a, b) for a, b in zip(decode(groups), alone, strict=True))  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(2048, 1000), (256, 8192), (300, 200)])
def test_a_row_of_a_product_does_not_depend_on_the_others(shape: tuple[int, int]) -> None:
    """A vector times a matrix, large enough to be taken in parts or not, alone and in company."""
    random = np.random.default_rng(7)
    w = random.standard_normal(shape, np.float32)
    x = random.standard_normal((8, 1, shape[0]), np.float32)
    together = product(x, w)
    assert np.abs(together - np.matmul(x, w)).max() < 1e-3
    for i in range(8):
        assert np.array_equal(product(x[i : i + 1], w)[0], together[i])


def test_attention_over_many_rows_is_exact() -> None:
    """One query over more rows than one product takes, masked and not, equals plain float64."""
    random = np.random.default_rng(9)
    q = random.standard_normal((1, 4, 512), np.float32)
    rows = random.standard_normal((1100, 512), np.float32)
    mask, sink = random.random((1, 1000)) < 0.5, np.zeros(4, np.float32)
    got = NumpyOps().attend(q, [(rows[:100], None), (rows[100:], mask)], sink, 512**-0.5)
    seen = np.concatenate([rows[:100], rows[100:][mask[0]]]).astype(np.float64)
    weights = np.exp(q[0] @ seen.T * 512**-0.5)
    expected = weights @ seen / (weights.sum(-1, keepdims=True) + 1)
    assert np.abs(got[0] - expected).max() < 1e-5


def test_sinkhorn_of_a_token_does_not_depend_on_the_others() -> None:
    """Twelve tokens of twelve sequences at once, and one by one, which takes another way."""
    logits = np.random.default_rng(8).standard_normal((12, 1, 4, 4), np.float32) * 3
    together = NumpyOps().sinkhorn(logits, 20, 1e-6)
    for i in range(12):
        assert np.array_equal(NumpyOps().sinkhorn(logits[i : i + 1], 20, 1e-6)[0], together[i])


def test_weights_past_the_budget_change_nothing(folders: dict[str, Path]) -> None:
    """A CPU that may hold no dequantized weight computes the same logits."""
    ids = random_ids(CONFIGS["small"], 40, 5)
    held = compute(load_network(folders["small"], device="cpu"), ids, [30, 1])
    network = load_network(folders["small"], device="cpu", dequantized_budget_bytes=0)
    assert np.array_equal(compute(network, ids, [30, 1]), held)


def test_what_is_not_wanted_is_not_returned(folders: dict[str, Path]) -> None:
    """Logits come for no position, the last one, or all of them, as each segment asks."""
    network = load_network(folders["small"], device="cpu")
    ids = random_ids(network.config, 20, 6)
    batch = [Segment(network.new_state(), ids, want) for want in Want]
    none, last, every = network.forward(batch)
    assert none is None
    assert last is not None
    assert every is not None
    assert every.shape == (20, network.config.vocab_size)
    assert np.abs(last - every[-1]).max() < 1e-5


@pytest.mark.parametrize(
    ("ids", "reason"),
    [([], "EMPTY_SEGMENT"), ([-1], "TOKEN_OUT_OF_RANGE"), ([192], "TOKEN_OUT_OF_RANGE")],
)
def test_bad_ids_are_refused_before_any_state_moves(
    folders: dict[str, Path], ids: list[int], reason: str
) -> None:
    """A bad segment anywhere in a batch leaves every state as it was."""
    network = load_network(folders["small"], device="cpu")
    good, bad = network.new_state(), network.new_state()
    batch = [
        Segment(good, np.array([1], np.int32), Want.LAST),
        Segment(bad, np.array(ids, np.int32), Want.LAST),
    ]
    with pytest.raises(RequestError) as caught:
        network.forward(batch)
    assert caught.value.reason == reason
    assert good.length == bad.length == 0


def test_the_context_is_a_limit(folders: dict[str, Path]) -> None:
    """A sequence cannot grow past the model's context."""
    network = load_network(folders["small"], device="cpu")
    state = network.new_state()
    state.length = network.config.max_position_embeddings
    with pytest.raises(RequestError) as caught:
        network.forward([Segment(state, np.array([1], np.int32), Want.LAST)])
    assert caught.value.reason == "CONTEXT_EXCEEDED"
