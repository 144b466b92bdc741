"""The services of ds4-kvcache on one server."""

from ds4.v1 import admin_pb2_grpc, kvcache_pb2_grpc
from ds4_runtime.server import Server

from ds4_kvcache.rpc.admin import Admin
from ds4_kvcache.rpc.kv_cache import KvCache


def add_services(server: Server, kv_cache: KvCache, admin: Admin) -> None:
    """Register all that this process serves. To be called before the server starts."""
    server.add("ds4.v1.KvCache", kvcache_pb2_grpc.add_KvCacheServicer_to_server, kv_cache)
    server.add("ds4.v1.Admin", admin_pb2_grpc.add_AdminServicer_to_server, admin)
