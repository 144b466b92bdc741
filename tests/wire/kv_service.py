"""Real ds4-kvcache processes on real sockets, and a small daemon's end of the wire.

`Link` speaks the contract by the generated stubs alone. Records are random bytes from a seed, so a
test can tell what must come back for any block of any prompt.
"""

import contextlib
import hashlib
import json
import os
import random
import subprocess
import sys
import time
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import grpc
from ds4.v1 import kvcache_pb2 as pb
from ds4.v1 import kvcache_pb2_grpc, kvstore_pb2
from ds4_runtime import kv_keys, shared_memory
from ds4_runtime.address import Home, grpc_target
from grpc_health.v1 import health_pb2, health_pb2_grpc

START_LIMIT_S = 30.0
CALL_LIMIT_S = 30.0
BLOCK = kvstore_pb2.RECORD_KIND_BLOCK
CHECKPOINT = kvstore_pb2.RECORD_KIND_CHECKPOINT
PACKED = kvstore_pb2.CODEC_PACKED
FINGERPRINT = '{"arch":"test","epoch":1}'


class NotServingError(Exception):
    """A service that was started does not serve; its log."""


class Service:
    """One ds4-kvcache in a home of its own."""

    def __init__(self, home: Path, *flags: str) -> None:
        self.home = Home(home)
        self.log = home / "kvcache.log"
        self.command = [sys.executable, "-m", "ds4_kvcache.main", *flags]
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> "Service":
        """Launch it and wait until it serves."""
        self.home.path.mkdir(mode=0o700, exist_ok=True)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(self.command, stderr=log, env=self.environment)
        deadline_s = time.monotonic() + START_LIMIT_S
        while True:
            with contextlib.suppress(grpc.RpcError), self.channel() as channel:
                health: Any = health_pb2_grpc.HealthStub(channel)
                answer = health.Check(health_pb2.HealthCheckRequest(), timeout=1)
                if answer.status == health_pb2.HealthCheckResponse.SERVING:
                    return self
            if self.process.poll() is not None or time.monotonic() > deadline_s:
                raise NotServingError(self.log.read_text())
            time.sleep(0.02)

    @property
    def environment(self) -> dict[str, str]:
        clean = {k: v for k, v in os.environ.items() if not k.startswith("DS4_")}
        return clean | {"DS4_HOME": str(self.home.path)}

    def run(self) -> "subprocess.CompletedProcess[str]":
        """Run it to its end, as for a start that must fail."""
        return subprocess.run(
            self.command,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=START_LIMIT_S,
        )

    def stop(self) -> int:
        """SIGTERM, and the exit code."""
        assert self.process is not None
        self.process.terminate()
        return self.process.wait(START_LIMIT_S)

    def kill(self) -> None:
        """SIGKILL it whatever it does."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    @property
    def stores(self) -> list[Path]:
        """The folders of its stores."""
        return [file.parent for file in self.home.cache_dir.rglob("data.mdb")]

    def channel(self) -> grpc.Channel:
        options = [("grpc.max_receive_message_length", -1), ("grpc.use_local_subchannel_pool", 1)]
        return grpc.insecure_channel(grpc_target(self.home.socket("kvcache")), options)

    @contextlib.contextmanager
    def link(self, fingerprint: str = FINGERPRINT, block_bytes: int = 5000) -> Iterator["Link"]:
        """A daemon's end, with its store open."""
        with self.channel() as channel:
            yield Link(channel, fingerprint, block_bytes)


@dataclass(frozen=True)
class Restored:
    """What a fetch brought: headers and bytes in order, and how it ended."""

    records: list[tuple[pb.RecordHeader, bytes]]
    failure: str
    bad_key: bytes = b""  # of a record that did not match its CRC-32


class Link:
    """A store opened over the wire."""

    def __init__(self, channel: grpc.Channel, fingerprint: str, block_bytes: int = 5000) -> None:
        self.channel = channel
        self.stub = kvcache_pb2_grpc.KvCacheStub(channel)
        self.fingerprint = fingerprint
        self.digest = kv_keys.fingerprint_digest(fingerprint)
        self.block_bytes = block_bytes
        request = pb.OpenRequest(
            fingerprint=pb.Fingerprint(digest=self.digest, json=fingerprint),
            layout_version=1,
            block_bytes=block_bytes,
            model_name="test",
            prefill_tok_s=100,
        )
        self.opened = self.stub.Open(request, timeout=CALL_LIMIT_S)
        self.store = self.opened.store

    def root(self, salt: str = "") -> bytes:
        return kv_keys.root_key(self.digest, salt)

    def keys(self, tokens: Sequence[int], salt: str = "") -> list[bytes]:
        return kv_keys.block_keys(self.root(salt), tokens)

    def put(
        self,
        tokens: Sequence[int],
        checkpoints: Iterable[int] = (),
        salt: str = "",
        first: int = 0,
    ) -> pb.PutResponse:
        """Store all complete blocks of a prompt from block `first`, and checkpoints at tokens."""
        records = prompt_records(self, tokens, checkpoints, salt, first)
        return self.send(records, salt)

    def send(
        self, records: Iterable[tuple[pb.RecordHeader, bytes]], salt: str = ""
    ) -> pb.PutResponse:
        """A Put of these records."""

        def messages() -> Iterator[pb.PutRequest]:
            yield pb.PutRequest(opening=pb.PutOpening(store=self.store, salt=salt))
            for header, data in records:
                yield pb.PutRequest(header=header)
                for at in range(0, len(data), self.opened.chunk_bytes):
                    yield pb.PutRequest(data=data[at : at + self.opened.chunk_bytes])

        answer: pb.PutResponse = self.stub.Put(messages(), timeout=CALL_LIMIT_S)
        return answer

    def lookup(self, tokens: Sequence[int], salt: str = "", **more: Any) -> pb.LookupResponse:
        request = pb.LookupRequest(store=self.store, salt=salt, token_ids=tokens, **more)
        answer: pb.LookupResponse = self.stub.Lookup(request, timeout=CALL_LIMIT_S)
        return answer

    def fetch(self, lease: int, resume_tokens: int, from_block: int = 0) -> Restored:
        """Fetch; records that match their CRC-32 only, as a daemon takes them."""
        request = pb.FetchRequest(
            store=self.store, lease=lease, from_block=from_block, resume_tokens=resume_tokens
        )
        records: list[tuple[pb.RecordHeader, bytes]] = []
        header, data = pb.RecordHeader(), bytearray()
        for part in self.stub.Fetch(request, timeout=CALL_LIMIT_S):
            match part.WhichOneof("part"):
                case "header":
                    header, data = part.header, bytearray()
                case "data":
                    data += part.data
                case _:
                    return Restored(records, part.failure.reason)
            if header.data_bytes and len(data) == header.data_bytes:
                if zlib.crc32(data) != header.crc32:
                    return Restored(records, "CRC_MISMATCH", header.key)
                records.append((header, bytes(data)))
        return Restored(records, "")

    def fetch_into_slab(self, lease: int, resume_tokens: int, window_bytes: int) -> Restored:
        """Fetch by shared memory, a window at a time; records that match their CRC-32 only."""
        name, memory = shared_memory.create(2 * window_bytes)
        records: list[tuple[pb.RecordHeader, bytes]] = []
        request = pb.FetchRequest(
            store=self.store, lease=lease, resume_tokens=resume_tokens, slab=name,
            slab_bytes=window_bytes,
        )  # fmt: skip
        while True:
            for part in self.stub.Fetch(request, timeout=CALL_LIMIT_S):
                if part.WhichOneof("part") != "placed":
                    return Restored(records, part.failure.reason)
                for header in part.placed.records:
                    at = header.slab_offset
                    data = memory[at : at + header.data_bytes]
                    if zlib.crc32(data) != header.crc32:
                        return Restored(records, "CRC_MISMATCH", header.key)
                    records.append((header, data))
                if name and not request.blocks_only:
                    shared_memory.unlink(name)
                    request.blocks_only = True
                request.from_block = part.placed.next_block
                ended = not part.placed.HasField("next_block")
            if ended:
                return Restored(records, "")
            request.slab_offset = window_bytes - request.slab_offset

    def restore(self, tokens: Sequence[int], salt: str = "") -> int:
        """Look up, fetch and compare all bytes with what was put; tokens that came back right."""
        found = self.lookup(tokens, salt)
        if not found.lease:
            return 0
        restored = self.fetch(found.lease, found.resume_tokens)
        self.stub.Release(pb.ReleaseRequest(lease=found.lease), timeout=CALL_LIMIT_S)
        keys = self.keys(tokens, salt)
        blocks = 0
        for header, data in restored.records:
            assert data == record_bytes(header.key, header.kind, len(data)), "wrong bytes"
            if header.kind == BLOCK:
                assert header.key == keys[blocks], "wrong order"
                blocks += 1
        if restored.bad_key:  # as a daemon does
            request = pb.InvalidateRequest(store=self.store, key=restored.bad_key)
            self.stub.Invalidate(request, timeout=CALL_LIMIT_S)
        if restored.failure:
            return 0
        assert blocks * 128 == found.resume_tokens
        assert restored.records[0][0].kind == CHECKPOINT
        return blocks * 128

    def stat(self) -> kvstore_pb2.StoreStats:
        answer = self.stub.Stat(kvstore_pb2.StatRequest(), timeout=CALL_LIMIT_S)
        (own,) = [one for one in answer.stores if one.fingerprint == self.digest]
        return own


def refusal(error: Any) -> tuple[grpc.StatusCode, str]:
    """Status and reason of a failed call, as they came over the wire."""
    found = {key: unquote(value) for key, value in error.trailing_metadata()}
    return error.code(), found.get("ds4-reason", "")


def prompt_records(
    link: Link,
    tokens: Sequence[int],
    checkpoints: Iterable[int] = (),
    salt: str = "",
    first: int = 0,
) -> Iterator[tuple[pb.RecordHeader, bytes]]:
    """The records of a prompt, parents first."""
    keys = link.keys(tokens, salt)
    at = set(checkpoints)
    for i, key in enumerate(keys):
        if i >= first:
            parent = keys[i - 1] if i else link.root(salt)
            yield block_record(
                key, parent, i + 1, tokens[128 * i : 128 * i + 128], link.block_bytes
            )
        if 128 * (i + 1) in at:
            yield checkpoint_record(key, i + 1, link.block_bytes + 1000)


def block_record(
    key: bytes, parent: bytes, depth: int, tokens: Sequence[int], size: int
) -> tuple[pb.RecordHeader, bytes]:
    data = record_bytes(key, BLOCK, size)
    header = pb.RecordHeader(
        key=key, kind=BLOCK, codec=PACKED, depth=depth, data_bytes=size,
        crc32=zlib.crc32(data), parent_key=parent, token_ids=tokens,
    )  # fmt: skip
    return header, data


def checkpoint_record(key: bytes, depth: int, size: int) -> tuple[pb.RecordHeader, bytes]:
    data = record_bytes(key, CHECKPOINT, size)
    header = pb.RecordHeader(
        key=key, kind=CHECKPOINT, codec=PACKED, depth=depth, data_bytes=size,
        crc32=zlib.crc32(data), checkpoint_kind=kvstore_pb2.CHECKPOINT_KIND_PROMPT_END,
    )  # fmt: skip
    return header, data


def record_bytes(key: bytes, kind: int, size: int) -> bytes:
    """What any record of this key and kind must hold: random, and the same in every process."""
    seed = hashlib.sha256(key + json.dumps(kind).encode()).digest()
    return random.Random(seed).randbytes(size)


def prompt(seed: int, count: int, shared: Sequence[int] = ()) -> list[int]:
    """A prompt of random tokens behind a shared beginning."""
    rest = random.Random(seed)
    return [*shared, *(rest.randrange(129_280) for _ in range(count - len(shared)))]
