"""The calls to the KV cache service: one store, opened when it is first needed and again when the
service was restarted.

Owns the channel and the handle. Every fault becomes a `LinkError` with the reason that a client is
told; nothing else leaves this module. Called from the link's threads, never from the engine's.
"""

import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import grpc
from ds4.v1 import kvcache_pb2 as pb
from ds4.v1 import kvcache_pb2_grpc, kvstore_pb2, types_pb2
from ds4_runtime.address import grpc_target

from ds4_daemon.kvlink import slab
from ds4_daemon.kvlink.slab import Data
from ds4_daemon.misses import Miss

LAYOUT_VERSION = 1
_OPEN_S = 2.0
# After a failure the service is left alone for so long: a prompt must not wait for what is not
# there, and a service that comes back is found within a second.
_PAUSE_S = 0.5
_MAX_MESSAGE_BYTES = 64 * 1024 * 1024
_OPTIONS = [
    ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", _MAX_MESSAGE_BYTES),
    # Despite its name, how long a connection may take to come about: a busy machine needs time for
    # it. What waits for it has deadlines of its own.
    ("grpc.min_reconnect_backoff_ms", 5_000),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.use_local_subchannel_pool", 1),
]

# What a call to a service that was restarted meets: a handle of the old process, or its connection.
_RESTARTED = (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.UNAVAILABLE)

_NOBODY = "no KV cache service answers in this home"

_Reply = TypeVar("_Reply")


class LinkError(Exception):
    """The service could not do it; `miss` is what the client is told."""

    def __init__(self, miss: Miss, message: str) -> None:
        super().__init__(message)
        self.miss = miss


class Identity(NamedTuple):
    """What the store is opened with."""

    digest: bytes
    json: str
    block_bytes: int
    model_name: str


class Store:
    """One fingerprint's store in the service on the socket `path`."""

    def __init__(self, path: Path, identity: Identity) -> None:
        self.identity = identity
        self._socket = path
        self.min_tokens = 0  # as the service says once it is open
        self.chunk_bytes = 1024 * 1024
        self.problem = ""
        self.prefill_tok_s = 0.0  # as last measured: what a restore saves, in seconds
        self._channel = grpc.insecure_channel(grpc_target(path), _OPTIONS)
        self._stub = kvcache_pb2_grpc.KvCacheStub(self._channel)
        # Record data skips protobuf: parsing would copy every megabyte once more.
        self._fetch = self._channel.unary_stream(
            "/ds4.v1.KvCache/Fetch",
            request_serializer=pb.FetchRequest.SerializeToString,
            response_deserializer=parse_fetch,
        )
        self._lock = threading.Lock()
        self._handle = 0
        self._retry_s = 0.0  # of time.monotonic
        self._closed = False

    @property
    def connected(self) -> bool:
        """Whether the service answered last."""
        return self._handle != 0

    def lookup(self, wanted: pb.LookupRequest, timeout_s: float) -> pb.LookupResponse:
        """The deepest stored prefix. Raises LinkError."""

        def call(handle: int) -> pb.LookupResponse:
            wanted.store, wanted.prefill_tok_s = handle, self.prefill_tok_s
            return self._stub.Lookup(wanted, timeout=timeout_s)

        return self._call(call)

    def fetch(
        self, lease: int, resume_tokens: int, nbytes: int, timeout_s: float, in_use: int
    ) -> Iterator[Any]:
        """The records of a leased prefix: headers, `Data` and failures as they come.

        `nbytes` is what Lookup said; a `Data` may be read until `in_use` more records came, and
        after the last one. Raises LinkError while it is iterated.
        """
        end_s = time.monotonic() + timeout_s
        request = pb.FetchRequest(store=self._handle, lease=lease, resume_tokens=resume_tokens)
        try:
            if nbytes >= slab.LEAST_BYTES:
                try:
                    yield from slab.fetch(self._start, request, nbytes, end_s, in_use)
                except slab.NoSlabError as error:
                    self.problem = str(error)  # what follows does without it
                else:
                    return
            stream = self._start(request, max(end_s - time.monotonic(), 0.001))
            try:
                yield from stream
            finally:
                stream.cancel()
        except grpc.RpcError as error:
            raise self._fault(error) from error

    def _start(self, request: pb.FetchRequest, timeout_s: float) -> Any:
        return self._fetch(request, timeout=timeout_s)

    def have(self, keys: Sequence[bytes], timeout_s: float) -> pb.HaveResponse:
        """Which records are stored. Raises LinkError."""
        return self._call(
            lambda handle: self._stub.Have(
                pb.HaveRequest(store=handle, keys=keys), timeout=timeout_s
            )
        )

    def put(
        self,
        opening: pb.PutOpening,
        records: Callable[[], Iterator[pb.PutRequest]],
        timeout_s: float,
    ) -> pb.PutResponse:
        """Store records. Raises LinkError."""

        def messages(handle: int) -> Iterator[pb.PutRequest]:
            opening.store, opening.prefill_tok_s = handle, self.prefill_tok_s
            yield pb.PutRequest(opening=opening)
            yield from records()

        return self._call(lambda handle: self._stub.Put(messages(handle), timeout=timeout_s))

    def release(self, lease: int) -> None:
        """Give a lease back; it would end by itself."""
        self._quiet(lambda: self._stub.Release(pb.ReleaseRequest(lease=lease), timeout=_OPEN_S))

    def invalidate(self, key: bytes, cause: types_pb2.Error, *, quarantine: bool = False) -> None:
        """Have a record and all below it dropped or set aside."""
        request = pb.InvalidateRequest(
            store=self._handle, key=key, cause=cause, quarantine=quarantine
        )
        self._quiet(lambda: self._stub.Invalidate(request, timeout=_OPEN_S))

    def inspect(self, key: bytes, timeout_s: float) -> list[kvstore_pb2.BlockNode]:
        """A block and its children. Raises LinkError."""
        request = kvstore_pb2.InspectRequest(key=key, levels=1)
        return list(self._call(lambda _: self._stub.Inspect(request, timeout=timeout_s)).nodes)

    def prefixes(self, salt: str, timeout_s: float) -> list[kvstore_pb2.StoredPrefix]:
        """Stored prefixes of one salt, most recently used first. Raises LinkError."""
        selection = kvstore_pb2.Selection(fingerprint=self.identity.digest, salt=salt)
        request = kvstore_pb2.ListRequest(selection=selection)
        return list(self._call(lambda _: self._stub.List(request, timeout=timeout_s)).prefixes)

    def close(self) -> None:
        """End the calls that run, and the channel."""
        self._closed = True
        self._channel.close()

    def notice(self) -> None:
        """Be no longer connected where nothing listens any more. Takes microseconds."""
        if self._handle and not _answers(self._socket):
            self.problem, self._handle = _NOBODY, 0

    def probe(self) -> None:
        """Open it if it is not, and anew where the service was restarted; raises LinkError."""
        self._call(lambda handle: self._stub.Have(pb.HaveRequest(store=handle), timeout=_OPEN_S))

    def _open(self) -> int:
        with self._lock:
            if self._handle:
                return self._handle
            if time.monotonic() < self._retry_s:
                raise LinkError(Miss.UNAVAILABLE, self.problem)
            if not _answers(self._socket):
                self.problem = _NOBODY
                raise LinkError(Miss.UNAVAILABLE, self.problem)
            mine = self.identity
            request = pb.OpenRequest(
                fingerprint=pb.Fingerprint(digest=mine.digest, json=mine.json),
                layout_version=LAYOUT_VERSION,
                block_bytes=mine.block_bytes,
                model_name=mine.model_name,
                prefill_tok_s=self.prefill_tok_s,
            )
            try:
                # It listens, so what the channel waits for is only its own pause after failures.
                opened = self._stub.Open(request, timeout=_OPEN_S, wait_for_ready=True)
            except (grpc.RpcError, ValueError) as error:
                raise self._fault(error) from error
            self._handle = opened.store
            self.min_tokens = opened.min_tokens
            self.chunk_bytes = opened.chunk_bytes or self.chunk_bytes
            self.problem = ""
            return self._handle

    def _call(self, call: Callable[[int], _Reply]) -> _Reply:
        """One call; once more with a new handle when the service knows the old one no more."""
        for attempt in (1, 2):
            handle = self._open()
            try:
                return call(handle)
            except (grpc.RpcError, ValueError) as error:
                code = error.code() if isinstance(error, grpc.Call) else None
                if attempt == 1 and code in _RESTARTED:
                    self._handle = 0
                    continue
                raise self._fault(error) from error
        raise AssertionError

    def _fault(self, error: Exception) -> LinkError:
        code = error.code() if isinstance(error, grpc.Call) else None
        details = error.details() if isinstance(error, grpc.Call) else str(error)
        if code is grpc.StatusCode.DEADLINE_EXCEEDED:
            return LinkError(Miss.TIMEOUT, "the KV cache service did not answer in time")
        if code is grpc.StatusCode.DATA_LOSS:
            return LinkError(Miss.CORRUPT, str(details))
        self.problem = f"{code.name if code else type(error).__name__}: {details}"
        self._handle = 0
        self._retry_s = time.monotonic() + _PAUSE_S
        return LinkError(Miss.UNAVAILABLE, self.problem)

    def _quiet(self, call: Callable[[], object]) -> None:
        try:
            call()
        except (grpc.RpcError, ValueError) as error:
            self.problem = str(error)


def _answers(path: Path) -> bool:
    """Whether a process listens there: told in microseconds, and no call waits for nobody."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(0.2)
        try:
            probe.connect(str(path))
        except OSError:
            return False
        return True


def parse_fetch(message: bytes) -> Any:
    """A FetchResponse: `Data` over the message itself when it is data, else what protobuf makes."""
    # Field 2, length-delimited, and nothing else: its tag, a varint, and the rest.
    if message[:1] == b"\x12":
        length, shift, at = 0, 0, 1
        while at < min(len(message), 6):
            byte = message[at]
            length |= (byte & 0x7F) << shift
            shift += 7
            at += 1
            if byte < 0x80:
                break
        if at + length == len(message):
            return Data(memoryview(message)[at:])
    return pb.FetchResponse.FromString(message)
