"""A pass through the model in slices: the same bits however it is cut, and what is left of one."""

import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from ds4_daemon.engine.prefix_state import bounded, fork, layout_of
from ds4_daemon.errors import EngineError
from ds4_daemon.kernels.mlx_ops import MlxOps
from ds4_daemon.kernels.numpy_ops import NumpyOps
from ds4_daemon.model.load import load_network
from ds4_daemon.model.network import Network, Segment, Want
from ds4_daemon.model.state import SessionState

from tests.model.random_models import CONFIGS, SEEDS, random_ids, random_tensors, write_release
from tests.model.test_kv_state import same_states


@pytest.fixture(scope="module", params=["cpu", "mlx-cpu"])
def network(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Network:
    config = CONFIGS["small"]
    folder = tmp_path_factory.mktemp("models") / "small"
    write_release(folder, config, random_tensors(config, SEEDS["small"]))
    return load_network(folder, device=request.param, dtype="f32")


def row(results: Sequence[np.ndarray | None]) -> np.ndarray:
    (only,) = results
    assert only is not None
    return only


def prefilled(network: Network, ids: np.ndarray) -> SessionState:
    state = network.new_state()
    network.forward([Segment(state, ids, Want.NONE)])
    return state


@pytest.mark.parametrize("sizes", [[1], [2], [5], [1, 11], [13], [99]])
def test_any_slicing_gives_the_same_bits(network: Network, sizes: list[int]) -> None:
    """Logits and state of a mixed batch do not depend on how many units a slice had."""
    ids = random_ids(network.config, 80, 1)

    def batch() -> list[Segment]:
        return [
            Segment(prefilled(network, ids[:40]), ids[40:80], Want.ALL),
            Segment(prefilled(network, ids[:9]), ids[9:10], Want.LAST),
            Segment(network.new_state(), ids[:20], Want.NONE),
        ]

    whole, cut = batch(), batch()
    expected = network.forward(whole)
    begun, turns = network.begin(cut), 0
    while not begun.advance(sizes[turns % len(sizes)]):
        assert [s.state.length for s in cut] == [40, 9, 0]
        turns += 1
    assert begun.done
    assert begun.done_units == begun.units > 2 * network.config.num_hidden_layers
    for a, b in zip(begun.results, expected, strict=True):
        assert (a is None and b is None) or np.array_equal(a, b)  # type: ignore[arg-type]
    assert all(same_states(a.state, b.state) for a, b in zip(whole, cut, strict=True))


def test_a_slow_device_gets_finer_units(monkeypatch: pytest.MonkeyPatch, network: Network) -> None:
    """Fewer queries and experts a unit change logits by rounding alone, and no slicing by a bit."""
    ids = random_ids(network.config, 150, 6)
    coarse = network.begin([Segment(network.new_state(), ids, Want.ALL)])
    coarse.advance(coarse.units)
    monkeypatch.setattr(NumpyOps, "slice_macs", 1e5)
    monkeypatch.setattr(MlxOps, "slice_macs", 1e5)
    whole = row(network.forward([Segment(network.new_state(), ids, Want.ALL)]))
    begun = network.begin([Segment(network.new_state(), ids, Want.ALL)])
    while not begun.advance(1):
        begun.wait()
    assert begun.units > 2 * coarse.units
    assert np.array_equal(row(begun.results), whole)
    assert np.abs(whole - row(coarse.results)).max() < 1e-4


def test_passes_between_the_slices_of_another_change_neither(network: Network) -> None:
    """A prompt advanced between the decode steps of another sequence, each as alone."""
    ids, prompt = random_ids(network.config, 60, 2), random_ids(network.config, 100, 3)

    def decode(state: SessionState, at: int) -> np.ndarray:
        return row(network.forward([Segment(state, ids[at : at + 1], Want.LAST)]))

    alone = prefilled(network, ids[:50])
    expected = [decode(alone, at) for at in range(50, 60)]
    prompt_alone = network.new_state()
    last = row(network.forward([Segment(prompt_alone, prompt, Want.LAST)]))

    running, prompted = prefilled(network, ids[:50]), network.new_state()
    begun = network.begin([Segment(prompted, prompt, Want.LAST)])
    got = []
    for at in range(50, 60):
        begun.advance(1)
        got.append(decode(running, at))
    assert begun.advance(begun.units)
    assert np.array_equal(np.stack(got), np.stack(expected))
    assert np.array_equal(row(begun.results), last)
    assert same_states(running, alone)
    assert same_states(prompted, prompt_alone)


def test_a_pass_on_another_thread_changes_nothing() -> None:
    """On a CPU a prompt and the decode steps of others run at once, each to the bits as alone."""
    config = CONFIGS["small"]
    with tempfile.TemporaryDirectory() as folder:
        release = write_release(Path(folder), config, random_tensors(config, SEEDS["small"]))
        network = load_network(release, device="cpu")
        ids, prompt = random_ids(config, 60, 2), random_ids(config, 300, 3)

        def decode(state: SessionState) -> list[np.ndarray]:
            segments = [Segment(state, ids[at : at + 1], Want.LAST) for at in range(50, 60)]
            return [row(network.forward([segment])) for segment in segments]

        def prefill() -> np.ndarray:
            return row(network.forward([Segment(network.new_state(), prompt, Want.LAST)]))

        with ThreadPoolExecutor(1) as other:  # the first time, weights are unpacked by both
            last = other.submit(lambda: [prefill() for _ in range(3)])
            got = [decode(prefilled(network, ids[:50])) for _ in range(3)]
        assert all(np.array_equal(a, prefill()) for a in last.result())
        assert all(np.array_equal(a, decode(prefilled(network, ids[:50]))) for a in got)


@pytest.mark.parametrize("units", [1, 6, 12])
def test_a_dropped_pass_leaves_an_earlier_checkpoint(network: Network, units: int) -> None:
    """Its state is refused from then on; a fork of it from before goes on bit for bit."""
    ids = random_ids(network.config, 330, 4)
    whole = prefilled(network, ids[:256])
    expected = row(network.forward([Segment(whole, ids[256:], Want.LAST)]))

    state = prefilled(network, ids[:256])
    taken = bounded(state)
    dropped = network.begin([Segment(state, ids[256:], Want.LAST)])
    dropped.advance(units)
    assert state.length == 256
    assert state.torn
    with pytest.raises(EngineError) as caught:
        network.begin([Segment(state, ids[256:], Want.LAST)])
    assert caught.value.reason == "STATE_TORN"

    forked = network.new_state()
    fork(state, taken, layout_of(network.config), forked)
    got = row(network.forward([Segment(forked, ids[256:], Want.LAST)]))
    assert np.array_equal(got, expected)
    assert same_states(forked, whole)


def test_a_state_stands_in_a_batch_once(network: Network) -> None:
    """Twice is refused, and the state is as it was."""
    state = network.new_state()
    segment = Segment(state, random_ids(network.config, 3, 5), Want.LAST)
    with pytest.raises(EngineError):
        network.begin([segment, segment])
    network.forward([segment])
    assert state.length == 3
    assert not state.torn
