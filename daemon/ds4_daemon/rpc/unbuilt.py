"""Services of the contract that this daemon does not have: every call says so, with a reason.

Registered so that a client learns why, instead of gRPC's bare UNIMPLEMENTED. Made by `main`.
"""

from typing import NoReturn

from ds4.v1 import kvcache_pb2_grpc

from ds4_daemon.errors import NotBuiltError


def _no_cache(self: object, request: object, context: object) -> NoReturn:
    raise NotBuiltError(
        "KV_CACHE_NOT_BUILT",
        "ds4-daemon keeps no KV cache; ds4-kvcache does",
        "ask on that process's socket",
    )


class KvCache(kvcache_pb2_grpc.KvCacheServicer):
    """The KV cache: another process's."""

    Open = Lookup = Fetch = Have = Release = Invalidate = _no_cache
    Stat = List = Inspect = Evict = Pin = Verify = Compact = Purge = _no_cache

    def Put(self, request_iterator: object, context: object) -> NoReturn:
        _no_cache(self, request_iterator, context)
