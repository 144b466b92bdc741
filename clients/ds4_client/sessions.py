"""The client of the daemon's sessions: the model states that it keeps between requests.

    with SessionsClient() as sessions:
        sessions.name("s12", "review")
        sessions.fork("review", name="what-if")

A request extends a session with `Client.generate(..., session="review")`. Safe to use from several
threads; every failure is a Ds4Error. A `session` is an id or a name. Messages are those of the
contract, proto/ds4/v1/sessions.proto.
"""

import os

import grpc
from ds4.v1 import sessions_pb2 as pb
from ds4.v1 import sessions_pb2_grpc

from ds4_client.caller import Caller
from ds4_client.channel import OPTIONS, Address


class SessionsClient(Caller):
    """A connection to the daemon of one home."""

    def __init__(self, home: str | os.PathLike[str] | None = None) -> None:
        """`home` overrides DS4_HOME."""
        self.address = Address(home)
        self._channel = grpc.insecure_channel(self.address.target, options=OPTIONS)
        self._stub = sessions_pb2_grpc.SessionsStub(self._channel)

    def list(self, client_name: str = "") -> list[pb.Session]:
        """The sessions of a client name, or all; most recently used first."""
        request = pb.ListSessionsRequest(client_name=client_name)
        return list(self._call(self._stub.ListSessions, request).sessions)

    def fork(
        self, session: str, *, name: str = "", at_token: int | None = None
    ) -> pb.ForkSessionResponse:
        """A second session of the same state, or of its first `at_token` tokens; also tells how
        many of these are computed again."""
        request = pb.ForkSessionRequest(session=session, name=name, at_token=at_token)
        return self._call(self._stub.ForkSession, request)

    def rewind(self, session: str, keep_tokens: int) -> pb.RewindSessionResponse:
        """Take it back; also tells how many of the kept tokens are computed again."""
        request = pb.RewindSessionRequest(session=session, keep_tokens=keep_tokens)
        return self._call(self._stub.RewindSession, request)

    def name(self, session: str, name: str) -> pb.Session:
        """Name or rename it; an empty name takes its name away."""
        request = pb.NameSessionRequest(session=session, name=name)
        return self._call(self._stub.NameSession, request).session

    def pin(self, session: str, *, pinned: bool = True) -> pb.Session:
        """Keep it when memory is wanted, or let it go."""
        request = pb.PinSessionRequest(session=session, pinned=pinned)
        return self._call(self._stub.PinSession, request).session

    def delete(self, session: str) -> int:
        """Free it; the bytes that came free."""
        request = pb.DeleteSessionRequest(session=session)
        return self._call(self._stub.DeleteSession, request).freed_bytes
