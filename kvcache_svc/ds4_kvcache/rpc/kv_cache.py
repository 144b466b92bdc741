"""The KvCache service: what the daemon calls. What people call is in `people`.

Translates between the contract and `cache`; every method leaves the event loop free.
"""

import time
from collections.abc import AsyncIterator

from ds4.v1 import kvcache_pb2 as pb
from ds4.v1 import types_pb2

from ds4_kvcache.cache import Cache
from ds4_kvcache.disk import Kind
from ds4_kvcache.errors import NotFoundError, RequestError
from ds4_kvcache.identity import Identity
from ds4_kvcache.leases import LEASE_S
from ds4_kvcache.lookup import Found, Miss, find, nearest
from ds4_kvcache.rpc import fetch, put
from ds4_kvcache.rpc.people import People
from ds4_kvcache.rpc.slab import Slabs
from ds4_kvcache.rpc.workers import Workers
from ds4_kvcache.store import Store

# Until a fetch was measured; a slow disk gives as much.
_DEFAULT_FETCH_BYTES_S = 300e6
# Of keys or tokens in one call: more than any context has.
_MOST_KEYS, _MOST_TOKENS = 100_000, 8_000_000
_MOST_NAME = 255  # of a model: every list of stores shows it


class KvCache(People):
    """Serves one cache."""

    def __init__(self, cache: Cache, workers: Workers, slabs: Slabs, min_tokens: int) -> None:
        super().__init__(cache, workers)
        self._slabs = slabs
        self._min_tokens = min_tokens

    async def Open(self, request: pb.OpenRequest, context: object) -> pb.OpenResponse:
        identity = Identity(
            request.fingerprint.json,
            request.layout_version,
            request.block_bytes,
            request.model_name[:_MOST_NAME],
        )
        number, store = await self.workers.patient(
            lambda: self.cache.open(identity, request.fingerprint.digest, request.prefill_tok_s)
        )
        return pb.OpenResponse(
            store=number,
            min_tokens=self._min_tokens,
            writable=store.writable,
            chunk_bytes=fetch.CHUNK_BYTES,
        )

    async def Lookup(self, request: pb.LookupRequest, context: object) -> pb.LookupResponse:
        if len(request.token_ids) > _MOST_TOKENS:
            raise RequestError("TOO_MANY_TOKENS", f"{len(request.token_ids)} token ids", "")
        put.check_salt(request.salt)
        store = self.cache.store(request.store)
        store.measured(request.prefill_tok_s)
        return await self.workers.patient(lambda: self._lookup(store, request))

    def _lookup(self, store: Store, request: pb.LookupRequest) -> pb.LookupResponse:
        token_ids = list(request.token_ids)
        if request.nearest:
            near = nearest(store, request.salt, token_ids)
            return pb.LookupResponse(
                nearest=pb.NearestPrefix(
                    common_tokens=near.common_tokens, next_token_ids=near.token_ids
                )
            )
        if len(token_ids) < self._min_tokens:
            found = Found(None, 0, Miss.TOO_SHORT)
        else:
            found = find(
                self.cache,
                store,
                request.salt,
                token_ids,
                request.max_tokens,
                request.live_tokens,
            )
        response = pb.LookupResponse(
            stored_tokens=found.stored_tokens,
            resume_tokens=found.resume_tokens,
            miss_reason=types_pb2.MissReason.ValueType(found.miss),
        )
        with store.lock:
            if found.node is None or not store.is_stored(found.node):
                if not request.peek:
                    store.counters.miss(found.miss)
                response.resume_tokens = 0
                return response
            if not request.peek:
                response.lease = self.cache.lease(store, found.node).id
                response.lease_ms = int(1000 * LEASE_S)
        response.fetch_bytes = found.raw_bytes
        response.fetch_s = found.raw_bytes / self._fetch_bytes_s()
        return response

    def _fetch_bytes_s(self) -> float:
        speeds = self.cache.fetch_bytes_s
        return sum(speeds) / len(speeds) if speeds else _DEFAULT_FETCH_BYTES_S

    def Fetch(self, request: pb.FetchRequest, context: object) -> AsyncIterator[pb.FetchResponse]:
        return fetch.fetch(self.cache, self.workers, self._slabs, request)

    async def Have(self, request: pb.HaveRequest, context: object) -> pb.HaveResponse:
        if len(request.keys) > _MOST_KEYS:
            raise RequestError("TOO_MANY_KEYS", f"{len(request.keys)} keys", f"send {_MOST_KEYS}")
        store = self.cache.store(request.store)
        return await self.workers.patient(lambda: _have(store, request))

    async def Put(
        self, request_iterator: AsyncIterator[pb.PutRequest], context: object
    ) -> pb.PutResponse:
        return await put.put(self.cache, self.workers, request_iterator)

    async def Release(self, request: pb.ReleaseRequest, context: object) -> pb.ReleaseResponse:
        self.cache.release(request.lease)
        return pb.ReleaseResponse()

    async def Invalidate(
        self, request: pb.InvalidateRequest, context: object
    ) -> pb.InvalidateResponse:
        store = self.cache.store(request.store)
        return await self.workers.patient(lambda: _invalidate(store, request))


def _have(store: Store, request: pb.HaveRequest) -> pb.HaveResponse:
    now_s = time.monotonic()
    with store.lock:
        for key in request.keys:
            if (node := store.index.nodes.get(key)) is not None:
                node.touched_s = now_s  # who asks is about to send what hangs on it
        return pb.HaveResponse(
            blocks=[store.has(key, Kind.BLOCK) for key in request.keys],
            checkpoints=[store.has(key, Kind.CHECKPOINT) for key in request.keys],
        )


def _invalidate(store: Store, request: pb.InvalidateRequest) -> pb.InvalidateResponse:
    try:
        node = store.node(request.key)
    except NotFoundError:
        return pb.InvalidateResponse()  # somebody else was quicker
    if request.quarantine:
        return pb.InvalidateResponse(records=store.quarantine(node))
    return pb.InvalidateResponse(records=store.forget(node))
