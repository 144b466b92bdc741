"""A KV cache service in memory whose every answer can be spoiled, and the daemon's link to it."""

import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from pathlib import Path
from typing import Any, NoReturn

import grpc
import numpy as np
from ds4.v1 import kvcache_pb2 as pb
from ds4.v1 import kvcache_pb2_grpc, types_pb2
from ds4_daemon.kernels.numpy_ops import NumpyOps
from ds4_daemon.kvlink.layout import Layout, Shape
from ds4_daemon.kvlink.link import Link, Pending
from ds4_daemon.kvlink.pack import Codec, Pieces, Record, places, unpack
from ds4_daemon.kvlink.records import Chain, CheckpointKind, Save, Target, Wanted
from ds4_daemon.kvlink.restore import Terms
from ds4_daemon.kvlink.store import Identity
from ds4_runtime.address import grpc_target
from ds4_runtime.kv_keys import block_keys, canonical_json, fingerprint_digest, root_key

LAYOUT = Layout((0, 4, 128), 128, 64, 32, 15)
Messages = list[pb.FetchResponse]
Spoil = Callable[[Messages], Iterator[pb.FetchResponse]]


class Peer(kvcache_pb2_grpc.KvCacheServicer):
    """Keeps what is put, and sends it through `spoil`."""

    def __init__(self) -> None:
        self.records: dict[tuple[bytes, int], tuple[pb.RecordHeader, bytes]] = {}
        self.spoil: Spoil = iter
        self.before: Callable[[str, Any], None] = lambda name, context: None
        self.invalidated: list[tuple[bytes, str]] = []
        self.released: list[int] = []
        self.leases: dict[int, list[bytes]] = {}
        self.handle, self.opened = 7, 0
        self.miss = types_pb2.MISS_REASON_COLD
        self.refuse = False
        self.folder = tempfile.TemporaryDirectory(prefix="ds4-", dir="/tmp")
        self.socket = Path(self.folder.name) / "kv.sock"
        self._server: grpc.Server | None = None

    def start(self) -> "Peer":
        self._server = grpc.server(futures.ThreadPoolExecutor(4))
        kvcache_pb2_grpc.add_KvCacheServicer_to_server(self, self._server)
        self._server.add_insecure_port(grpc_target(self.socket))
        self._server.start()
        return self

    def stop(self) -> None:
        assert self._server is not None
        self._server.stop(0).wait()
        self.socket.unlink(missing_ok=True)

    def Open(self, request: pb.OpenRequest, context: Any) -> pb.OpenResponse:  # noqa: N802 (the contract)
        self.before("Open", context)
        self.opened += 1
        return pb.OpenResponse(store=self.handle, min_tokens=128, writable=True, chunk_bytes=3000)

    def Lookup(self, request: pb.LookupRequest, context: Any) -> pb.LookupResponse:  # noqa: N802 (the contract)
        self.before("Lookup", context)
        self._check(request.store, context)
        root = root_key(identity().digest, request.salt)
        keys = block_keys(root, request.token_ids)[: request.max_tokens // 128]
        stored = 0
        while stored < len(keys) and (keys[stored], 1) in self.records:
            stored += 1
        resume = stored
        while resume and (keys[resume - 1], 2) not in self.records:
            resume -= 1
        lease = 0
        if resume * 128 > request.live_tokens:
            lease = len(self.leases) + 1
            self.leases[lease] = keys[:resume]
        return pb.LookupResponse(
            lease=lease,
            stored_tokens=128 * stored,
            resume_tokens=128 * resume,
            miss_reason=self.miss if stored < len(keys) else types_pb2.MISS_REASON_UNSPECIFIED,
        )

    def Fetch(self, request: pb.FetchRequest, context: Any) -> Iterator[pb.FetchResponse]:  # noqa: N802 (the contract)
        self.before("Fetch", context)
        keys = self.leases[request.lease]
        messages: Messages = []
        for key, kind in [(keys[-1], 2), *((key, 1) for key in keys)]:
            header, data = self.records[key, kind]
            messages.append(pb.FetchResponse(header=header))
            messages += [
                pb.FetchResponse(data=data[at : at + 3000]) for at in range(0, len(data), 3000)
            ]
        yield from self.spoil(messages)

    def Have(self, request: pb.HaveRequest, context: Any) -> pb.HaveResponse:  # noqa: N802 (the contract)
        self.before("Have", context)
        self._check(request.store, context)
        return pb.HaveResponse(
            blocks=[(key, 1) in self.records for key in request.keys],
            checkpoints=[(key, 2) in self.records for key in request.keys],
        )

    def Put(self, request_iterator: Any, context: Any) -> pb.PutResponse:  # noqa: N802 (the contract)
        self.before("Put", context)
        stored, header, data = 0, None, b""
        for message in request_iterator:
            if message.HasField("header"):
                header, data = message.header, b""
            elif message.HasField("data"):
                data += message.data
            if header is not None and len(data) == header.data_bytes:
                if self.refuse:
                    refusal = types_pb2.Error(reason="DISK_FULL", message="the disk is full")
                    return pb.PutResponse(dropped=1, refusal=refusal)
                self.records[header.key, header.kind] = (header, data)
                stored, header = stored + 1, None
        return pb.PutResponse(stored=stored)

    def Release(self, request: pb.ReleaseRequest, context: Any) -> pb.ReleaseResponse:  # noqa: N802 (the contract)
        self.released.append(request.lease)
        return pb.ReleaseResponse()

    def Invalidate(self, request: pb.InvalidateRequest, context: Any) -> pb.InvalidateResponse:  # noqa: N802 (the contract)
        self.invalidated.append((request.key, request.cause.reason))
        for kind in (1, 2):
            self.records.pop((request.key, kind), None)
        return pb.InvalidateResponse(records=1)

    def _absent(self, request: object, context: object) -> NoReturn:
        raise NotImplementedError

    Stat = List = Inspect = Evict = Pin = Verify = Compact = Purge = _absent

    def _check(self, handle: int, context: Any) -> None:
        if handle != self.handle:
            context.abort(grpc.StatusCode.NOT_FOUND, "no such store")


class Collected:
    """A target that keeps what it is given."""

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens
        self._blocks: dict[int, Pieces] = {}
        self._checkpoint = places(LAYOUT.checkpoint(tokens), LAYOUT)

    def block_places(self, block: int, count: int) -> Pieces:
        made = places(LAYOUT.block, LAYOUT, count)
        for i in range(count):
            assert block + i not in self._blocks
            self._blocks[block + i] = Pieces(*(tuple(a[i] for a in part) for part in made))
        return made

    def checkpoint_places(self) -> Pieces:
        return self._checkpoint

    @property
    def blocks(self) -> dict[int, Record]:
        return {block: pieces.joined(LAYOUT) for block, pieces in self._blocks.items()}

    @property
    def checkpoint(self) -> Record:
        found = Pieces(*(tuple(a[0] for a in part) for part in self._checkpoint))
        return found.joined(LAYOUT)


def unpacked(codec: int, data: bytes, shape: Shape, layout: Layout) -> Record:
    """The values of one record."""
    out = places(shape, layout)
    unpack(Codec(codec), np.frombuffer(data, np.uint8)[None], out, layout)
    return Pieces(*(tuple(a[0] for a in part) for part in out)).joined(layout)


def identity() -> Identity:
    text = canonical_json({"test": 1})
    return Identity(fingerprint_digest(text), text, LAYOUT.block_bytes, "test")


def link_to(peer: Peer, deadline_s: float = 20.0, min_saving_s: float = 0.0) -> Link:
    return Link(peer.socket, identity(), LAYOUT, Terms(min_saving_s, deadline_s))


def tokens_of(seed: int, blocks: int) -> tuple[int, ...]:
    return tuple(int(i) for i in np.random.RandomState(seed).randint(0, 5000, 128 * blocks + 1))


def record_of(seed: int, checkpoint: bool) -> Record:
    """A record as the network rounds it, another for every seed."""
    shape = LAYOUT.checkpoint(128) if checkpoint else LAYOUT.block
    random, ops = np.random.RandomState(seed), NumpyOps()

    def draw(*size: int) -> np.ndarray:
        return random.standard_normal(size).astype(np.float32)

    rows = draw(sum(shape.rows), 128)
    rows[:, :64] = ops.fp8_round(rows[:, :64])
    keys = draw(sum(shape.keys), 32)
    return Record(rows, ops.fp4_round(keys) if len(keys) else keys, draw(sum(shape.rest)))


def save(link: Link, token_ids: tuple[int, ...], checkpoints: list[int], salt: str = "") -> Chain:
    """Every block, and checkpoints after so many blocks; all of them sent when this returns."""
    chain = queue(link, token_ids, checkpoints, salt)
    assert link.sender.flush(20)
    return chain


def queue(link: Link, token_ids: tuple[int, ...], checkpoints: list[int], salt: str = "") -> Chain:
    """The same, to be sent at the link's own pace."""
    chain = Chain(salt)
    root = root_key(link.digest, salt)
    keys = block_keys(root, token_ids)
    for i, key in enumerate(keys):
        parent = keys[i - 1] if i else root
        for is_checkpoint in (False, True):
            if is_checkpoint and i + 1 not in checkpoints:
                continue
            link.save(
                Save(
                    chain,
                    key,
                    parent,
                    i + 1,
                    Pieces(*((part,) for part in record_of(2 * i + is_checkpoint, is_checkpoint))),
                    1000,
                    () if is_checkpoint else token_ids[128 * i : 128 * i + 128],
                    CheckpointKind.LATTICE if is_checkpoint else None,
                )
            )
    return chain


def restore(
    link: Link, token_ids: tuple[int, ...], *, live: int = 0, recompute_s: float = 0.0
) -> Pending:
    """A restore that is over."""
    done = threading.Event()
    made: list[Target] = []

    def make(tokens: int) -> Target:
        made.append(Collected(tokens))
        return made[-1]

    most = (len(token_ids) - 1) // 128 * 128
    wanted = Wanted(token_ids, "", most, live, lambda _: recompute_s)
    pending = link.restore(wanted, make, done.set)
    assert done.wait(30)
    return pending


def wait_until(condition: Callable[[], bool], limit_s: float = 10.0) -> None:
    end_s = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end_s
        time.sleep(0.01)
