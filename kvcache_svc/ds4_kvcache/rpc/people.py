"""The part of the KvCache service that people call: figures, lists, and deleting by hand."""

from typing import NoReturn

from ds4.v1 import kvcache_pb2_grpc

from ds4_kvcache.cache import Cache
from ds4_kvcache.errors import NotBuiltError
from ds4_kvcache.rpc.workers import Workers


def _not_built(self: object, request: object, context: object) -> NoReturn:
    raise NotBuiltError("NOT_BUILT", "this call is not served yet", "")


class People(kvcache_pb2_grpc.KvCacheServicer):
    """Base of the servicer; what it does not have yet answers NOT_BUILT."""

    def __init__(self, cache: Cache, workers: Workers) -> None:
        self.cache = cache
        self.workers = workers

    Stat = List = Inspect = Evict = Pin = Verify = Compact = Purge = _not_built
