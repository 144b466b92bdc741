"""The Sessions service of the scripted daemon. It keeps what it was asked, and two sessions."""

from typing import Any

from ds4.v1 import sessions_pb2 as pb
from ds4.v1 import sessions_pb2_grpc, types_pb2


class SessionsPeer(sessions_pb2_grpc.SessionsServicer):
    """Answers with its first session, changed as asked."""

    def __init__(self) -> None:
        self.asked: list[Any] = []
        self.sessions = [
            pb.Session(
                id="s1", name="review", state=pb.SESSION_STATE_IDLE, tokens=12_345,
                client=types_pb2.ClientInfo(name="editor"), own_bytes=3_500_000,
                shared_bytes=1_200_000_000, pinned=True, idle_s=75.0, salt="bob",
                tail_text="and so it was\x1b[2J\nthe end of " + "a long " * 20 + "story",
            ),
            pb.Session(id="s2", state=pb.SESSION_STATE_SAVED, tokens=64),
        ]  # fmt: skip

    def ListSessions(  # noqa: N802
        self, request: pb.ListSessionsRequest, context: Any
    ) -> pb.ListSessionsResponse:
        self.asked.append(request)
        return pb.ListSessionsResponse(sessions=self.sessions)

    def ForkSession(  # noqa: N802
        self, request: pb.ForkSessionRequest, context: Any
    ) -> pb.ForkSessionResponse:
        self.asked.append(request)
        return pb.ForkSessionResponse(session=pb.Session(id="s3", name=request.name, tokens=64))

    def RewindSession(  # noqa: N802
        self, request: pb.RewindSessionRequest, context: Any
    ) -> pb.RewindSessionResponse:
        self.asked.append(request)
        return pb.RewindSessionResponse(session=pb.Session(id="s1"), recompute_tokens=7)

    def NameSession(  # noqa: N802
        self, request: pb.NameSessionRequest, context: Any
    ) -> pb.NameSessionResponse:
        self.asked.append(request)
        return pb.NameSessionResponse(session=pb.Session(id="s1", name=request.name))

    def PinSession(  # noqa: N802
        self, request: pb.PinSessionRequest, context: Any
    ) -> pb.PinSessionResponse:
        self.asked.append(request)
        return pb.PinSessionResponse(session=pb.Session(id="s1", pinned=request.pinned))

    def DeleteSession(  # noqa: N802
        self, request: pb.DeleteSessionRequest, context: Any
    ) -> pb.DeleteSessionResponse:
        self.asked.append(request)
        return pb.DeleteSessionResponse(freed_bytes=2_500_000)
