"""The Inference service: each call of the contract, in a few lines over the modules beside it.

Owns nothing but the order of things: check off the event loop, accept, follow. Made by `main`;
errors are translated outside.
"""

import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from functools import partial

from ds4.v1 import inference_pb2 as pb
from ds4.v1 import inference_pb2_grpc, types_pb2

from ds4_daemon.engine.loop import Engine
from ds4_daemon.errors import RequestError
from ds4_daemon.rpc.accept import Acceptance, digest
from ds4_daemon.rpc.answer import token_piece
from ds4_daemon.rpc.estimate import estimate, refusal
from ds4_daemon.rpc.explain import explain
from ds4_daemon.rpc.offload import Offload
from ds4_daemon.rpc.request import Job, Requests, check_salt
from ds4_daemon.rpc.resume import Resumption
from ds4_daemon.rpc.stream import follow


class Inference(inference_pb2_grpc.InferenceServicer):
    """Serves one engine and its model's text."""

    def __init__(
        self, engine: Engine, requests: Requests, acceptance: Acceptance, resumption: Resumption
    ) -> None:
        self._engine = engine
        self._requests = requests
        self._acceptance = acceptance
        self._resumption = resumption
        self._offload = Offload(engine.room.capacity)

    async def Generate(
        self, request: pb.GenerateRequest, context: object
    ) -> AsyncIterator[pb.GenerateEvent]:
        arrived_s = time.monotonic()
        self._engine.check_open()  # before the work of rendering a prompt that cannot run

        def check() -> tuple[Job, str, bytes | None]:
            job = self._requests.job(request, arrived_s)
            content = digest(request)
            if not request.detach:
                return job, content, None
            return job, content, self._resumption.entry(request, job, content)

        job, content, entry = await self._offload.run(request.ByteSize(), check)
        kept = await self._acceptance.take(job, content, entry)
        async with aclosing(follow(self._engine, kept, 0)) as events:
            async for event in events:
                yield event

    async def Attach(
        self, request: pb.AttachRequest, context: object
    ) -> AsyncIterator[pb.GenerateEvent]:
        kept = self._acceptance.requests.of(request.request_id, request.client.name)
        async with aclosing(follow(self._engine, kept, request.offset)) as events:
            async for event in events:
                yield event

    async def Cancel(self, request: pb.CancelRequest, context: object) -> pb.CancelResponse:
        return pb.CancelResponse(cancelled=self._acceptance.cancel(request.request_id))

    async def Tokenize(self, request: pb.TokenizeRequest, context: object) -> pb.TokenizeResponse:
        def tokenize() -> pb.TokenizeResponse:
            ids = self._requests.prompt(request.prompt).ids
            if request.pieces:
                self._requests.check_count(len(ids), "pieces")
            tokenizer = self._requests.tokenizer
            return pb.TokenizeResponse(
                tokens=types_pb2.TokenIds(ids=ids),
                pieces=[token_piece(tokenizer, i) for i in ids] if request.pieces else [],
            )

        return await self._offload.run(request.ByteSize(), tokenize)

    async def Detokenize(
        self, request: pb.DetokenizeRequest, context: object
    ) -> pb.DetokenizeResponse:
        def detokenize() -> pb.DetokenizeResponse:
            self._requests.check_count(len(request.tokens.ids), "ids")
            return pb.DetokenizeResponse(text=self._requests.tokenizer.decode(request.tokens.ids))

        return await self._offload.run(request.ByteSize(), detokenize)

    async def Render(self, request: pb.RenderRequest, context: object) -> pb.RenderResponse:
        def rendered() -> pb.RenderResponse:
            prompt = self._requests.render(request.conversation)
            return pb.RenderResponse(text=prompt.text, tokens=types_pb2.TokenIds(ids=prompt.ids))

        return await self._offload.run(request.ByteSize(), rendered)

    async def Estimate(self, request: pb.EstimateRequest, context: object) -> pb.EstimateResponse:
        arrived_s = time.monotonic()
        self._engine.check_open()
        check = partial(self._requests.job, request.request, arrived_s)
        try:
            job = await self._offload.run(request.ByteSize(), check)
        except RequestError as error:
            return pb.EstimateResponse(refusal=refusal(error))
        return await estimate(self._engine, job.sequence)

    async def Explain(self, request: pb.ExplainRequest, context: object) -> pb.ExplainResponse:
        self._engine.check_open()
        salt = check_salt(request.salt)
        prompt = await self._offload.run(
            request.ByteSize(), partial(self._requests.prompt, request.prompt)
        )
        self._requests.check_count(len(prompt.ids), "tokens")
        return await explain(self._engine, self._requests.tokenizer, prompt.ids, salt)
