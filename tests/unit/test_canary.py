"""Restores are computed again while the engine is idle; wrong ones are set aside."""

import asyncio
import zlib
from array import array
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from ds4.v1 import kvstore_pb2
from ds4_daemon.engine.canary import Canary
from ds4_daemon.engine.loop import Ended, Engine
from ds4_daemon.engine.prefix import Prefixes
from ds4_daemon.engine.prefix_state import layout_of
from ds4_daemon.kvlink.layout import Layout
from ds4_daemon.kvlink.link import Link
from ds4_daemon.kvlink.pack import pack
from ds4_daemon.kvlink.restore import Terms
from ds4_daemon.model.load import load_network
from ds4_daemon.model.network import Network, Segment, Want
from ds4_daemon.sched.policy import Limits
from ds4_daemon.sched.sampling import Sampling
from ds4_daemon.sched.sequence import Sequence

from tests.model.random_models import CONFIGS, random_ids, random_tensors, write_release
from tests.unit.kv_peer import Peer, identity, unpacked

CONFIG = CONFIGS["true-heads"]
LAYOUT = layout_of(CONFIG)


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Network:
    folder = write_release(tmp_path_factory.mktemp("m") / "m", CONFIG, random_tensors(CONFIG, 2))
    return load_network(folder, device="cpu")


@pytest.fixture
def peer() -> Iterator[Peer]:
    started = Peer().start()
    yield started
    started.stop()
    started.folder.cleanup()


def damage(peer: Peer, layout: Layout, block: int) -> bytes:
    """Change a row of a stored block and all its checksums, as wrong code would; its key."""
    keys = [key for key, kind in peer.records if kind == 1]
    header, data = peer.records[keys[block], 1]
    record = unpacked(header.codec, data, layout.block, layout)
    rows = record.rows.copy()
    rows[3] = np.roll(rows[3], 64)
    codec, data = pack(record._replace(rows=rows).pieces, layout)
    header.data_bytes, header.crc32 = len(data), zlib.crc32(data)
    header.codec = kvstore_pb2.Codec.ValueType(codec.value)
    peer.records[keys[block], 1] = (header, data)
    return keys[-1]


async def run(engine: Engine, name: str, ids: list[int]) -> Sequence:
    sequence = Sequence(name, array("i", ids), Sampling(), 2)
    events = engine.submit(sequence)
    while not isinstance(event := await asyncio.wait_for(events.get(), 30), Ended):
        pass
    assert event.error is None
    return sequence


@pytest.mark.parametrize("damaged", [None, 1, 4])
def test_a_wrong_restore_is_found(network: Network, peer: Peer, damaged: int | None) -> None:
    """A row that no checksum betrays is found in the stretch that is computed again, and only
    there; the chain is set aside and counted."""
    ids = random_ids(CONFIG, 700, 1).tolist()

    def reuse(model: Any, engine: Engine) -> Prefixes:
        link = Link(peer.socket, identity(), LAYOUT, Terms(0.0, 20.0))
        canary = Canary(
            link,
            model.new_state,
            lambda state, ids: model.forward([Segment(state, ids, Want.NONE)]),
            every=2,
            chunk_tokens=256,
            wake=engine.wake,
        )
        return Prefixes(model.new_state, LAYOUT, link, canary=canary, wake=engine.wake)

    async def main() -> None:
        engine = Engine(lambda: network, Limits(8, 256), 50, reuse)
        await engine.start(0)
        prefixes = engine.prefixes
        assert prefixes is not None and prefixes.link is not None and prefixes.canary is not None
        await run(engine, "shorter", ids[:300])  # leaves a checkpoint at 256
        await run(engine, "first", ids)
        assert prefixes.link.sender.flush(20)
        key = damage(peer, LAYOUT, damaged) if damaged is not None else b""
        for i in range(2):
            assert (await run(engine, f"again {i}", ids)).cached_restored_tokens == 640
        for _ in range(1000):
            if prefixes.canary.checked:
                break
            await asyncio.sleep(0.01)
        assert prefixes.canary.checked == 1
        wrong = damaged == 4  # block 1 lies before the stretch from 256 to 640
        assert prefixes.canary.failed == wrong
        await engine.close(5)
        prefixes.close_link(5)
        assert peer.invalidated == ([(key, "CANARY_FAILED")] if wrong else [])

    asyncio.run(main())


@pytest.mark.filterwarnings("ignore:invalid value")  # it computes with NaN, as it is to find out
def test_a_restore_that_fails_is_invalidated_and_computed(network: Network, peer: Peer) -> None:
    """A model that cannot go on from what was restored gets the prompt computed, and the client
    its answer, with the reason."""
    ids = random_ids(CONFIG, 300, 4).tolist()

    def reuse(model: Any, engine: Engine) -> Prefixes:
        link = Link(peer.socket, identity(), LAYOUT, Terms(0.0, 20.0))
        return Prefixes(model.new_state, LAYOUT, link, wake=engine.wake)

    async def main() -> None:
        engine = Engine(lambda: network, Limits(8, 256), 50, reuse)
        await engine.start(0)
        prefixes = engine.prefixes
        assert prefixes is not None and prefixes.link is not None
        first = await run(engine, "first", ids)
        assert prefixes.link.sender.flush(20)
        (key,) = [key for key, kind in peer.records if kind == 2]
        header, data = peer.records[key, 2]
        record = unpacked(header.codec, data, LAYOUT.checkpoint(256), LAYOUT)
        record.rest[:] = np.nan
        data = pack(record.pieces, LAYOUT)[1]
        header.data_bytes, header.crc32 = len(data), zlib.crc32(data)
        peer.records[key, 2] = (header, data)
        again = await run(engine, "again", ids)
        assert again.ids == first.ids
        assert again.cached_restored_tokens == 0
        assert again.miss.name == "RESTORE_FAILED"
        await engine.close(5)
        prefixes.close_link(5)
        assert (key, "RESTORE_FAILED") in peer.invalidated

    asyncio.run(main())
