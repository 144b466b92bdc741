"""The client of ds4-kvcache for people and their programs: look at the cache, and tidy it up.

    with KvCacheClient() as cache:
        print(cache.stat().total.hits)
        cache.evict(idle_s=7 * 24 * 3600, dry_run=True)

What ds4-daemon calls to store and restore is not here. Safe to use from several threads; every
failure is a Ds4Error. Messages are those of the contract, proto/ds4/v1/kvstore.proto.
"""

import os
from collections.abc import Iterator

import grpc
from ds4.v1 import kvcache_pb2_grpc
from ds4.v1 import kvstore_pb2 as pb

from ds4_client.caller import Caller
from ds4_client.channel import OPTIONS, Address

# Looking at a large cache takes a second; writing its file anew takes a minute for each 20 GB.
CALL_TIMEOUT_S = 60.0
LONG_CALL_TIMEOUT_S = 3600.0


class KvCacheClient(Caller):
    """A connection to the KV cache of one home."""

    _timeout_s = CALL_TIMEOUT_S

    def __init__(self, home: str | os.PathLike[str] | None = None) -> None:
        """`home` overrides DS4_HOME."""
        self.address = Address(home, "kvcache")
        self._channel = grpc.insecure_channel(self.address.target, options=OPTIONS)
        self._stub = kvcache_pb2_grpc.KvCacheStub(self._channel)

    def stat(self, timeout_s: float = CALL_TIMEOUT_S) -> pb.StatResponse:
        """Figures of the whole cache and of each fingerprint."""
        return self._call(self._stub.Stat, pb.StatRequest(), timeout_s)

    def list(self, selection: pb.Selection | None = None) -> Iterator[pb.StoredPrefix]:
        """All stored prefixes that are selected, most recently used first."""
        request = pb.ListRequest(selection=selection)
        while True:
            page = self._call(self._stub.List, request)
            yield from page.prefixes
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    def inspect(
        self, key: bytes = b"", *, levels: int = 0, brief: bool = False
    ) -> pb.InspectResponse:
        """The block whose key begins with `key`, and its descendants; no key: all first blocks."""
        return self._call(
            self._stub.Inspect, pb.InspectRequest(key=key, levels=levels, brief=brief)
        )

    def evict(
        self, selection: pb.Selection | None = None, *, to_bytes: int = 0, dry_run: bool = False
    ) -> pb.EvictResponse:
        """Drop what is selected, least valuable first, down to `to_bytes`; 0: all of it."""
        request = pb.EvictRequest(selection=selection, to_bytes=to_bytes, dry_run=dry_run)
        return self._call(self._stub.Evict, request)

    def pin(self, key: bytes, name: str, ttl_s: float = 0) -> pb.StoredPrefix:
        """Protect a prefix from eviction for `ttl_s` seconds; 0: until it is unpinned."""
        return self._call(self._stub.Pin, pb.PinRequest(key=key, name=name, ttl_s=ttl_s)).prefix

    def unpin(self, name: str) -> pb.StoredPrefix:
        """Take a pin away; its prefix, empty where that is no more."""
        return self._call(self._stub.Pin, pb.PinRequest(name=name, remove=True)).prefix

    def verify(
        self,
        selection: pb.Selection | None = None,
        *,
        structure_only: bool = False,
        repair: bool = False,
    ) -> Iterator[pb.VerifyResponse]:
        """Check what is selected, and tell how far that is until it is done."""
        request = pb.VerifyRequest(
            selection=selection, structure_only=structure_only, repair=repair
        )
        try:
            yield from self._stub.Verify(request, timeout=LONG_CALL_TIMEOUT_S)
        except grpc.RpcError as error:
            raise self.address.explain(error) from None

    def compact(self, fingerprint: bytes = b"") -> pb.CompactResponse:
        """Write the files anew without their free pages."""
        request = pb.CompactRequest(fingerprint=fingerprint)
        return self._call(self._stub.Compact, request, LONG_CALL_TIMEOUT_S)

    def purge(
        self,
        *,
        fingerprint: bytes = b"",
        salt: str | None = None,
        unused: bool = False,
        dry_run: bool = False,
    ) -> pb.PurgeResponse:
        """Delete for good what a fingerprint or a salt has, or what no daemon has open."""
        request = pb.PurgeRequest(
            fingerprint=fingerprint, salt=salt, unused=unused, dry_run=dry_run
        )
        return self._call(self._stub.Purge, request, LONG_CALL_TIMEOUT_S)
