"""The asynchronous client of ds4-daemon, for one event loop. Method by method the twin of `client`.

    async with AsyncClient() as client:
        print((await client.run("Why is the sky blue?", max_tokens=200)).text)
        async with client.generate([{"role": "user", "content": "Hi"}], temperature=0) as stream:
            async for event in stream:              # leaving the block early cancels the request
                if isinstance(event, Delta):
                    print(event.content, end="")

To be made inside a running event loop. Every failure is a Ds4Error.
"""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar, Unpack

import grpc
import grpc.aio
from ds4.v1 import admin_pb2, admin_pb2_grpc, inference_pb2, inference_pb2_grpc, types_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc

from ds4_client.caller import CALL_TIMEOUT_S
from ds4_client.channel import OPTIONS, Address, program_name
from ds4_client.client import WAIT_STEP_S
from ds4_client.collect import Collector, Completion, bad_end
from ds4_client.errors import CancelledError, Ds4Error, InternalError, NotRunningError
from ds4_client.events import Event, Finished, from_event
from ds4_client.prompt import Prompt, to_conversation, to_prompt
from ds4_client.rejoin import PATIENCE_S, Place
from ds4_client.request import Options, call_timeout_s, patience_s, to_request, who

if TYPE_CHECKING:
    _Call = grpc.aio.UnaryStreamCall[Any, inference_pb2.GenerateEvent]

_R = TypeVar("_R")


class AsyncStream:
    """The events of one request: an iterator, and a context whose end cancels what still runs.

    A request that was sent with `detach` goes on instead. Its stream comes back by itself when the
    connection drops or the daemon restarts, and goes on after the last event it gave.
    """

    def __init__(
        self,
        address: Address,
        place: Place,
        call: "_Call",
        attach: "Callable[[inference_pb2.AttachRequest], _Call]",
    ) -> None:
        self.request_id = place.request_id
        self._address = address
        self._place = place
        self._call = call
        self._attach = attach
        self._events = aiter(call)
        self._finished = self._left = False

    @property
    def offset(self) -> int:
        """What `AsyncClient.attach` takes to go on after the last event that came."""
        return self._place.offset

    def __aiter__(self) -> AsyncIterator[Event]:
        return self

    async def __anext__(self) -> Event:
        """The next event. Raises the Ds4Error of a request that failed or ended badly."""
        while True:
            try:
                return await self._next()
            except Ds4Error as error:
                pause_s = None if self._finished or self._left else self._place.pause_s(error)
                if pause_s is None:
                    raise
            await asyncio.sleep(pause_s)
            self._call = self._attach(self._place.request())
            self._events = aiter(self._call)

    async def _next(self) -> Event:
        try:
            while True:
                message = await anext(self._events)
                self._place.took(message)
                event = from_event(message)
                if isinstance(event, Finished):
                    self._finished = True
                    if error := bad_end(event):
                        raise error
                if event is not None:
                    return event
        except StopAsyncIteration:
            if self._finished or self._place.at_end:
                raise
            raise InternalError("STREAM_CUT", "the daemon ended a request without a word") from None
        except grpc.aio.AioRpcError as error:
            raise self._address.explain(error) from None
        except asyncio.CancelledError:
            # gRPC raises it for its call too; cancelling the task is the loop's business alone.
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            raise CancelledError("CANCELLED", "the request was cancelled") from None

    def cancel(self) -> None:
        """Stop reading, which stops the request unless it was sent with `detach`; that one is
        stopped by `AsyncClient.cancel`. Reading on raises CancelledError."""
        self._left = True
        self._call.cancel()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.cancel()


class AsyncClient:
    """A connection to the daemon of one home, made at the first call and again when it is lost."""

    def __init__(
        self, home: str | os.PathLike[str] | None = None, *, name: str | None = None
    ) -> None:
        """`home` overrides DS4_HOME; `name` is what the daemon calls this program."""
        self.address = Address(home)
        self.name = name or program_name()
        self._channel = grpc.aio.insecure_channel(self.address.target, options=OPTIONS)
        self._inference = inference_pb2_grpc.InferenceStub(self._channel)
        self._admin = admin_pb2_grpc.AdminStub(self._channel)
        self._health: Any = health_pb2_grpc.HealthStub(self._channel)

    def generate(self, prompt: Prompt, **options: Unpack[Options]) -> AsyncStream:
        """Send a request and return its events. `ds4_client.prompt` says what `prompt` may be."""
        request = to_request(self.name, prompt, options)
        call = self._inference.Generate(request, timeout=call_timeout_s(request))
        place = Place(request.request_id, request.client, patience_s(options))
        return AsyncStream(self.address, place, call, self._inference.Attach)

    def attach(
        self, request_id: str, offset: int = 0, *, patience_s: float = PATIENCE_S
    ) -> AsyncStream:
        """Rejoin a request that this program sent: its events from `offset` on, to its end.

        `AsyncStream.offset` of the one before tells where it was. Leaving it stops no detached
        request.
        """
        place = Place(request_id, who(self.name), patience_s, offset)
        attach = self._inference.Attach
        return AsyncStream(self.address, place, attach(place.request()), attach)

    async def run(self, prompt: Prompt, **options: Unpack[Options]) -> Completion:
        """Send a request and wait for the whole answer."""
        collector = Collector()
        async with self.generate(prompt, **options) as stream:
            async for event in stream:
                collector.add(event)
        return collector.completion()

    async def cancel(self, request_id: str) -> bool:
        """Stop a request of any client. False when none of that id runs or waits."""
        request = inference_pb2.CancelRequest(request_id=request_id)
        return (await self._call(self._inference.Cancel, request)).cancelled

    async def estimate(
        self, prompt: Prompt, **options: Unpack[Options]
    ) -> inference_pb2.EstimateResponse:
        """What such a request would cost now; nothing runs."""
        request = inference_pb2.EstimateRequest(request=to_request(self.name, prompt, options))
        return await self._call(self._inference.Estimate, request)

    async def tokenize(
        self, prompt: Prompt, *, pieces: bool = False
    ) -> inference_pb2.TokenizeResponse:
        """The token ids that `generate` would use, and on request the piece of each."""
        request = inference_pb2.TokenizeRequest(prompt=to_prompt(prompt), pieces=pieces)
        return await self._call(self._inference.Tokenize, request)

    async def detokenize(self, ids: Sequence[int]) -> str:
        """The text of token ids."""
        request = inference_pb2.DetokenizeRequest(tokens=types_pb2.TokenIds(ids=ids))
        return (await self._call(self._inference.Detokenize, request)).text

    async def render(self, prompt: Prompt) -> inference_pb2.RenderResponse:
        """A chat as the model would see it: text and ids."""
        request = inference_pb2.RenderRequest(conversation=to_conversation(prompt))
        return await self._call(self._inference.Render, request)

    async def status(self) -> admin_pb2.StatusResponse:
        """How the daemon is."""
        return await self._call(self._admin.Status, admin_pb2.StatusRequest())

    async def health(self) -> bool:
        """Whether the daemon serves: False while it loads or drains."""
        response = await self._call(self._health.Check, health_pb2.HealthCheckRequest())
        return bool(response.status == health_pb2.HealthCheckResponse.SERVING)

    async def wait(self, timeout_s: float) -> bool:
        """Wait until the daemon serves. False when it does not within `timeout_s`."""
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                if await self.health():
                    return True
            except NotRunningError:
                if time.monotonic() > deadline:
                    raise
            if time.monotonic() > deadline:
                return False
            await asyncio.sleep(WAIT_STEP_S)

    async def _call(self, method: Callable[..., Awaitable[_R]], request: object) -> _R:
        try:
            return await method(request, timeout=CALL_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            raise self.address.explain(error) from None

    async def close(self) -> None:
        """Close the connection; running requests are cancelled."""
        await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()
