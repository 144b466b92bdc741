"""What Status tells of the link to the KV cache service. Called by `admin`."""

from ds4.v1 import admin_pb2 as pb
from ds4.v1 import kvstore_pb2, types_pb2

from ds4_daemon.engine.prefix import Prefixes


def kv_link_status(prefixes: Prefixes | None) -> pb.KvLinkStatus:
    """Its state and counters; DISABLED before the model is loaded and where there is no link."""
    link = prefixes.link if prefixes is not None else None
    if link is None:
        return pb.KvLinkStatus(state=pb.KV_LINK_STATE_DISABLED)
    link.look()
    canary = prefixes.canary if prefixes is not None else None
    sender = link.sender
    connected = link.store.connected
    status = pb.KvLinkStatus(
        state=pb.KV_LINK_STATE_CONNECTED if connected else pb.KV_LINK_STATE_UNAVAILABLE,
        queue_bytes=sender.queue_bytes,
        dropped_records=sender.dropped,
        canaries=canary.checked if canary is not None else 0,
        canary_failures=canary.failed if canary is not None else 0,
        restores=link.restores,
        restored_tokens=link.restored_tokens,
        misses_by_reason=[
            kvstore_pb2.MissCount(reason=types_pb2.MissReason.ValueType(miss.value), count=count)
            for miss, count in link.misses.copy().items()
        ],
        saved_records=sender.stored,
        duplicate_records=sender.duplicates,
        refused_records=sender.refused,
    )
    if not connected:
        status.problem.CopyFrom(
            types_pb2.Error(
                reason="KV_CACHE_UNAVAILABLE",
                message=link.store.problem or "the KV cache service was not asked yet",
                hint="start ds4-kvcache; prompts are computed whole meanwhile",
            )
        )
    return status
