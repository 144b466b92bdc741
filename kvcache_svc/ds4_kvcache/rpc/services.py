"""The services of ds4-kvcache on one server."""

from ds4.v1 import kvcache_pb2_grpc
from ds4_runtime.server import Server

from ds4_kvcache.rpc.kv_cache import KvCache


def add_services(server: Server, kv_cache: KvCache) -> None:
    """Register all that this process serves. To be called before the server starts."""
    server.add("ds4.v1.KvCache", kvcache_pb2_grpc.add_KvCacheServicer_to_server, kv_cache)
