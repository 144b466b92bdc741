"""The part of the KvCache service that people call: figures, lists, and deleting by hand.

Translates between the contract and `browse` and `check`; everything runs off the event loop.
"""

import asyncio
import functools
import re
from collections.abc import AsyncIterator

from ds4.v1 import kvcache_pb2_grpc
from ds4.v1 import kvstore_pb2 as pb

from ds4_kvcache import browse, check, pins
from ds4_kvcache.cache import Cache
from ds4_kvcache.errors import RequestError
from ds4_kvcache.rpc import messages
from ds4_kvcache.rpc.workers import Workers

_DEFAULT_PAGE, _MOST_PAGE = 100, 1000
# Of the prefixes that an eviction names.
_MOST_NAMED = 100


class People(kvcache_pb2_grpc.KvCacheServicer):
    """Base of the servicer, with what people call."""

    def __init__(self, cache: Cache, workers: Workers) -> None:
        self.cache = cache
        self.workers = workers

    async def Stat(self, request: pb.StatRequest, context: object) -> pb.StatResponse:
        answer = await self.workers.patient(lambda: messages.stat(self.cache))
        if request.fingerprint:
            kept = [one for one in answer.stores if one.fingerprint.startswith(request.fingerprint)]
            del answer.stores[:]
            answer.stores.extend(kept)
        return answer

    async def List(self, request: pb.ListRequest, context: object) -> pb.ListResponse:
        if request.page_token and not re.fullmatch(r"\d{1,18}", request.page_token):
            raise RequestError("BAD_PAGE_TOKEN", "the page token is none of this service's", "")
        start = int(request.page_token or 0)
        size = min(request.page_size or _DEFAULT_PAGE, _MOST_PAGE)

        def page() -> pb.ListResponse:
            found = browse.prefixes(self.cache, messages.selection(request.selection))
            shown = found[start : start + size]
            more = start + size < len(found)
            return pb.ListResponse(
                prefixes=[messages.stored_prefix(self.cache, one) for one in shown],
                next_page_token=str(start + size) if more else "",
            )

        return await self.workers.patient(page)

    async def Inspect(self, request: pb.InspectRequest, context: object) -> pb.InspectResponse:
        def shown() -> pb.InspectResponse:
            most = browse.MOST_BRIEF_NODES if request.brief else browse.MOST_NODES
            found = browse.inspect(self.cache, request.key, request.levels, most)
            nodes = messages.block_nodes(self.cache, found, brief=request.brief)
            return pb.InspectResponse(nodes=nodes)

        return await self.workers.patient(shown)

    async def Evict(self, request: pb.EvictRequest, context: object) -> pb.EvictResponse:
        def evicted() -> pb.EvictResponse:
            chosen = messages.selection(request.selection)
            with self.cache.lock:  # nothing comes between the plan and the deed
                victims, kept, prefixes = browse.plan_eviction(self.cache, chosen, request.to_bytes)
                named = [messages.stored_prefix(self.cache, one) for one in prefixes[:_MOST_NAMED]]
                if not request.dry_run:
                    self.cache.drop(victims)
            return pb.EvictResponse(
                records=len(victims),
                bytes=sum(victim.bytes for victim in victims),
                protected_records=kept,
                prefixes=named,
            )

        return await self.workers.patient(evicted)

    async def Pin(self, request: pb.PinRequest, context: object) -> pb.PinResponse:
        if not 0 < len(request.name.encode()) <= 255 or not 0 <= request.ttl_s < 1e10:
            raise RequestError(
                "BAD_PIN", "a pin needs a name of 1 to 255 bytes and a time of 0 or more"
            )

        def pinned() -> pb.PinResponse:
            with self.cache.lock:
                if request.remove:
                    store, node = pins.unpin(self.cache, request.name)
                    if node is None:
                        return pb.PinResponse()
                else:
                    if not request.key:
                        raise RequestError("NO_KEY", "a pin needs the key of a block")
                    store, node = browse.find_node(self.cache, request.key)
                    pins.pin(self.cache, store, node, request.name, request.ttl_s)
                shown = browse.prefix(store, node)
            return pb.PinResponse(prefix=messages.stored_prefix(self.cache, shown))

        return await self.workers.patient(pinned)

    async def Verify(
        self, request: pb.VerifyRequest, context: object
    ) -> AsyncIterator[pb.VerifyResponse]:
        reports = check.verify(
            self.cache,
            messages.selection(request.selection),
            structure_only=request.structure_only,
            repair=request.repair,
        )
        while True:
            report = await self.workers.patient(functools.partial(next, reports, None))
            if report is None:
                return
            yield pb.VerifyResponse(
                checked_records=report.checked,
                total_records=report.total,
                bad_records=report.bad,
                findings=[
                    *([messages.error(report.problem)] if report.problem and report.done else []),
                    *(messages.finding(one) for one in report.findings),
                ],
                done=report.done,
            )
            await asyncio.sleep(0)

    async def Compact(self, request: pb.CompactRequest, context: object) -> pb.CompactResponse:
        before, after = await self.workers.patient(
            lambda: browse.compact(self.cache, request.fingerprint)
        )
        return pb.CompactResponse(before_bytes=before, after_bytes=after)

    async def Purge(self, request: pb.PurgeRequest, context: object) -> pb.PurgeResponse:
        salt = request.salt if request.HasField("salt") else None
        stores, records, size = await self.workers.patient(
            lambda: browse.purge(
                self.cache, request.fingerprint, salt, request.unused, request.dry_run
            )
        )
        return pb.PurgeResponse(stores=stores, records=records, bytes=size)
