"""A session's state through bytes: the one that comes back goes on as if it had never left."""

from pathlib import Path

import numpy as np
import pytest
from ds4_daemon import standin
from ds4_daemon.engine.prefix_state import (
    Bounded,
    Restoring,
    block_pieces,
    bounded,
    checkpoint_pieces,
    duplicate,
    fork,
    held,
    layout_of,
)
from ds4_daemon.kvlink.layout import Layout
from ds4_daemon.kvlink.memory import Memory
from ds4_daemon.kvlink.pack import Codec, pack, unpack
from ds4_daemon.model.load import load_network
from ds4_daemon.model.network import Network, Segment, Want
from ds4_daemon.model.state import SessionState

from tests.model.random_models import CONFIGS, SEEDS, random_ids, random_tensors, write_release

CHUNK = 512


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Network:
    made = standin.make(tmp_path_factory.mktemp("models") / "stand-in")
    return load_network(made.gguf, device="cpu")


def run(
    network: Network, state: SessionState, ids: np.ndarray, cut: int
) -> tuple[list[np.ndarray], Bounded | None]:
    """Logits after each chunk to the end of `ids`, and the bounded state at `cut`."""
    logits, taken = [], None
    while state.length < len(ids):
        at = state.length
        stop = min((at // CHUNK + 1) * CHUNK, len(ids), cut if at < cut else len(ids))
        row = network.forward([Segment(state, ids[at:stop], Want.LAST)])[0]
        assert row is not None
        if state.length > cut or cut == len(ids):
            logits.append(row)
        if state.length == cut:
            taken = bounded(state)
    return logits, taken


def through_bytes(
    network: Network, state: SessionState, taken: Bounded, layout: Layout
) -> SessionState:
    """What a session was at `taken`, packed, unpacked and put into a new state."""
    restoring = Restoring(layout, taken.tokens, taken.tokens + 300, Memory())
    for block in range(taken.tokens // 128):
        codec, data = pack(block_pieces(state, layout, block), layout)
        place = restoring.block_places(block, 1)
        unpack(codec, np.frombuffer(data, np.uint8)[None], place, layout)
    codec, data = pack(checkpoint_pieces(taken), layout)
    place = restoring.checkpoint_places()
    unpack(codec, np.frombuffer(data, np.uint8)[None], place, layout)
    new = network.new_state()
    again = restoring.into(new)
    assert again.tokens == taken.tokens
    return new


def arrays(state: SessionState) -> list[np.ndarray]:
    buffers = []
    for layer in state.layers:
        buffers.append(layer.window)
        for compressor in (layer.compressor, layer.indexer):
            if compressor is not None:
                buffers += [compressor.tail, compressor.entries]
    return [buffer.part(0, len(buffer)) for buffer in buffers]


def same_states(a: SessionState, b: SessionState) -> bool:
    pairs = zip(arrays(a), arrays(b), strict=True)
    return a.length == b.length and all(np.array_equal(x, y) for x, y in pairs)


@pytest.mark.parametrize("length", [129, 511, 4095, 4096, 4097])
def test_a_restored_state_goes_on_bit_for_bit(network: Network, length: int) -> None:
    """Logits and every array equal those of the session that was saved, and of its fork."""
    layout = layout_of(network.config)
    ids = random_ids(network.config, length + 40, length)
    cut = (length - 1) // 128 * 128
    cold = network.new_state()
    expected, taken = run(network, cold, ids, cut)
    assert taken is not None
    restored = through_bytes(network, cold, taken, layout)
    forked = network.new_state()
    fork(cold, taken, layout, forked)
    for state in (restored, forked):
        got, _ = run(network, state, ids, cut)
        assert all(np.array_equal(a, b) for a, b in zip(got, expected, strict=True))
        assert same_states(state, cold)


@pytest.mark.parametrize("name", ["odd", "true-heads"])
def test_other_networks_come_back_too(tmp_path: Path, name: str) -> None:
    """Other windows and ratios, with rounding and without, where codecs are wider."""
    config = CONFIGS[name]
    folder = write_release(tmp_path / name, config, random_tensors(config, SEEDS[name]))
    for rounding in (False, name == "true-heads"):
        network = load_network(folder, device="cpu", rounding=rounding)
        ids = random_ids(config, 300, 1)
        cold = network.new_state()
        expected, taken = run(network, cold, ids, 256)
        assert taken is not None
        restored = through_bytes(network, cold, taken, layout_of(config))
        got, _ = run(network, restored, ids, 256)
        assert all(np.array_equal(a, b) for a, b in zip(got, expected, strict=True))
        assert same_states(restored, cold)


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_states_on_mlx_come_back(tmp_path: Path, dtype: str) -> None:
    """The same over MLX, in both activation types; rotated channels are bf16 where those are."""
    config = CONFIGS["true-heads"]
    folder = write_release(tmp_path / "m", config, random_tensors(config, 2))
    network = load_network(folder, device="mlx-cpu", dtype=dtype)
    ids = random_ids(config, 140, 1)
    cold = network.new_state()
    expected, taken = run(network, cold, ids, 128)
    assert taken is not None
    layout = layout_of(config)
    codec, _ = pack(block_pieces(cold, layout, 0), layout)
    assert codec is (Codec.PACKED if dtype == "bf16" else Codec.PACKED_F32)
    restored = through_bytes(network, cold, taken, layout)
    got, _ = run(network, restored, ids, 128)
    assert all(np.array_equal(a, b) for a, b in zip(got, expected, strict=True))
    assert same_states(restored, cold)


@pytest.mark.parametrize("device", ["cpu", "mlx-cpu"])
def test_a_duplicate_is_the_same_state_at_any_length(tmp_path: Path, device: str) -> None:
    """It and the one it was made of go on apart, each to the bits of one that was never copied."""
    config = CONFIGS["true-heads"]
    folder = write_release(tmp_path / "m", config, random_tensors(config, 2))
    network = load_network(folder, device=device)
    common, ends = random_ids(config, 131, 1), [random_ids(config, 9, seed) for seed in (2, 3)]
    states: list[SessionState] = [network.new_state() for _ in range(4)]
    expected: list[np.ndarray | None] = []
    for state, end in zip(states[:2], ends, strict=True):
        network.forward([Segment(state, common, Want.NONE)])
        expected.append(network.forward([Segment(state, end, Want.ALL)])[0])
    network.forward([Segment(states[2], common, Want.NONE)])
    duplicate(states[2], states[3])
    assert held(states[2]) == held(states[3])
    for alone, state, end, logits in zip(states[:2], states[2:], ends, expected, strict=True):
        got = network.forward([Segment(state, end, Want.ALL)])[0]
        assert got is not None
        assert logits is not None
        assert np.array_equal(got, logits)
        assert same_states(state, alone)


def test_what_was_taken_stays_as_it_was(network: Network) -> None:
    """A bounded state and blocks are views, and a session that runs on changes none of them."""
    layout = layout_of(network.config)
    ids = random_ids(network.config, 1024, 7)
    state = network.new_state()
    network.forward([Segment(state, ids[:256], Want.NONE)])
    taken, block = bounded(state), block_pieces(state, layout, 1)
    kept = [a.copy() for a in (*taken.windows, *(t for p in taken.tails for t in p), *block.rows)]
    for at in range(256, 1024, 64):
        network.forward([Segment(state, ids[at : at + 64], Want.NONE)])
    now = [*taken.windows, *(t for p in taken.tails for t in p), *block.rows]
    assert all(np.array_equal(a, b) for a, b in zip(kept, now, strict=True))


def test_zeroed_entries_change_the_logits(network: Network) -> None:
    """The comparison can fail: without the compressed rows the logits are others."""
    layout = layout_of(network.config)
    ids = random_ids(network.config, 600, 9)
    cold = network.new_state()
    expected, taken = run(network, cold, ids, 512)
    assert taken is not None
    damaged = through_bytes(network, cold, taken, layout)
    for layer in damaged.layers:
        if layer.compressor is not None:
            layer.compressor.entries.view()[:] = 0
    got, _ = run(network, damaged, ids, 512)
    assert not np.array_equal(got[-1], expected[-1])
