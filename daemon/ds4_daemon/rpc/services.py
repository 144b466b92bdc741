"""The services of ds4-daemon on one server: those it has, and those it has to refuse by name."""

from ds4.v1 import admin_pb2_grpc, inference_pb2_grpc, kvcache_pb2_grpc, sessions_pb2_grpc
from ds4_runtime.server import Server

from ds4_daemon.rpc.admin import Admin
from ds4_daemon.rpc.inference import Inference
from ds4_daemon.rpc.sessions import Sessions
from ds4_daemon.rpc.unbuilt import KvCache


def add_services(server: Server, inference: Inference, admin: Admin, sessions: Sessions) -> None:
    """Register all of the contract. To be called before the server starts."""
    add = server.add
    add("ds4.v1.Inference", inference_pb2_grpc.add_InferenceServicer_to_server, inference)
    add("ds4.v1.Admin", admin_pb2_grpc.add_AdminServicer_to_server, admin)
    add("ds4.v1.Sessions", sessions_pb2_grpc.add_SessionsServicer_to_server, sessions)
    add("ds4.v1.KvCache", kvcache_pb2_grpc.add_KvCacheServicer_to_server, KvCache())
