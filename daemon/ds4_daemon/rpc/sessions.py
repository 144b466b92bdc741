"""The Sessions service: the contract's messages around `engine.sessions`.

Everything runs on the engine's thread between two steps, so an answer may take as long as a step.
Made by `main`; errors are translated outside.
"""

from collections.abc import Callable
from functools import partial
from typing import TypeVar

from ds4.v1 import sessions_pb2 as pb
from ds4.v1 import sessions_pb2_grpc, types_pb2

from ds4_daemon.engine.loop import Engine
from ds4_daemon.engine.sessions import Info
from ds4_daemon.engine.sessions import Sessions as LiveSessions
from ds4_daemon.text.tokenizer import Tokenizer

_Result = TypeVar("_Result")


class Sessions(sessions_pb2_grpc.SessionsServicer):
    """Serves the sessions of one engine."""

    def __init__(self, engine: Engine, tokenizer: Tokenizer) -> None:
        self._engine = engine
        self._tokenizer = tokenizer

    async def ListSessions(
        self, request: pb.ListSessionsRequest, context: object
    ) -> pb.ListSessionsResponse:
        found = await self._ask(lambda live: live.list(request.client_name))
        return pb.ListSessionsResponse(sessions=map(self._session, found))

    async def ForkSession(
        self, request: pb.ForkSessionRequest, context: object
    ) -> pb.ForkSessionResponse:
        at = request.at_token if request.HasField("at_token") else None
        moved = await self._ask(lambda live: live.fork(request.session, request.name, at))
        return pb.ForkSessionResponse(
            session=self._session(moved.info), recompute_tokens=moved.recompute_tokens
        )

    async def RewindSession(
        self, request: pb.RewindSessionRequest, context: object
    ) -> pb.RewindSessionResponse:
        moved = await self._ask(lambda live: live.rewind(request.session, request.keep_tokens))
        return pb.RewindSessionResponse(
            session=self._session(moved.info), recompute_tokens=moved.recompute_tokens
        )

    async def NameSession(
        self, request: pb.NameSessionRequest, context: object
    ) -> pb.NameSessionResponse:
        info = await self._ask(lambda live: live.name(request.session, request.name))
        return pb.NameSessionResponse(session=self._session(info))

    async def PinSession(
        self, request: pb.PinSessionRequest, context: object
    ) -> pb.PinSessionResponse:
        info = await self._ask(lambda live: live.pin(request.session, pinned=request.pinned))
        return pb.PinSessionResponse(session=self._session(info))

    async def DeleteSession(
        self, request: pb.DeleteSessionRequest, context: object
    ) -> pb.DeleteSessionResponse:
        freed = await self._ask(lambda live: live.delete(request.session))
        return pb.DeleteSessionResponse(freed_bytes=freed)

    async def _ask(self, call: Callable[[LiveSessions], _Result]) -> _Result:
        self._engine.check_open()
        prefixes = self._engine.prefixes
        assert prefixes is not None  # it is open
        return await self._engine.ask(partial(call, LiveSessions(prefixes)))

    def _session(self, info: Info) -> pb.Session:
        name, instance = info.client
        return pb.Session(
            id=info.id,
            name=info.name,
            state=pb.SessionState.ValueType(info.where.value),
            client=types_pb2.ClientInfo(name=name, instance=instance),
            tokens=info.tokens,
            own_bytes=info.own_bytes,
            shared_bytes=info.shared_bytes,
            pinned=info.pinned,
            idle_s=info.idle_s,
            salt=info.salt,
            tail_text=self._tokenizer.decode(info.tail_ids),
        )
