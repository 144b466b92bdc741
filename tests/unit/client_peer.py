"""A small daemon for client tests: the contract served by plain grpc over a real socket, scripted.

It shares no code with ds4_runtime's server or ds4_client, so that both ends of the wire are
written twice. A test sets `peer.script`; what the peer saw is in `peer.requests` and `peer.left`.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from pathlib import Path
from typing import Any, NoReturn

import grpc
from ds4.v1 import (
    admin_pb2,
    admin_pb2_grpc,
    inference_pb2,
    inference_pb2_grpc,
    sessions_pb2_grpc,
    types_pb2,
)
from ds4.v1.inference_pb2 import (
    Accepted,
    Delta,
    Finished,
    GenerateEvent,
    GenerateRequest,
    Progress,
    Usage,
)
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from tests.unit.sessions_peer import SessionsPeer

Script = Callable[[GenerateRequest, grpc.ServicerContext], Iterator[GenerateEvent]]

USAGE = Usage(
    prompt_tokens=12,
    completion_tokens=3,
    reasoning_tokens=1,
    cached_live_tokens=4,
    cached_restored_tokens=0,
    miss_reason=types_pb2.MISS_REASON_DISABLED,
    ttft_ms=31.25,
    prefill_tok_s=256.5,
    decode_tok_s=64.125,
)


def accepted() -> GenerateEvent:
    return GenerateEvent(accepted=Accepted(prompt_tokens=12, max_tokens=100, seed=7))


def progress(done: int, total: int) -> GenerateEvent:
    return GenerateEvent(
        progress=Progress(
            phase=inference_pb2.PHASE_PREFILL,
            prefilled_tokens=done,
            total_tokens=total,
            tokens_per_s=100.0,
            eta_s=(total - done) / 100,
        )
    )


def content(text: str, *token_ids: int) -> GenerateEvent:
    return GenerateEvent(delta=Delta(content=text, token_ids=token_ids))


def reasoning(text: str) -> GenerateEvent:
    return GenerateEvent(delta=Delta(reasoning=text))


def finished(
    reason: inference_pb2.FinishReason.ValueType = inference_pb2.FINISH_REASON_STOP,
    error: types_pb2.Error | None = None,
) -> GenerateEvent:
    return GenerateEvent(finished=Finished(reason=reason, usage=USAGE, error=error))


def refuse(
    context: grpc.ServicerContext, code: grpc.StatusCode, reason: str, message: str, hint: str
) -> NoReturn:
    """End the call as the contract says that errors are told; the hint is already encoded."""
    context.set_trailing_metadata((("ds4-reason", reason), ("ds4-hint", hint)))
    context.abort(code, message)


def echo(request: GenerateRequest, context: grpc.ServicerContext) -> Iterator[GenerateEvent]:
    """Reason a little unless told not to, then say the last message back, word by word."""
    chat = request.prompt.conversation
    said = chat.messages[-1].content if chat.messages else request.prompt.text
    yield accepted()
    yield progress(12, 12)
    if chat.messages and chat.thinking_mode != types_pb2.THINKING_MODE_OFF:
        yield reasoning("Let me think.")
    yield content("You said:")
    for word in said.split():
        yield content(" " + word)
    yield finished()


def forever(request: GenerateRequest, context: grpc.ServicerContext) -> Iterator[GenerateEvent]:
    """Say "on and on" until the client leaves or the deadline of the request passes."""
    start = time.monotonic()
    yield accepted()
    while context.is_active():
        yield content("on and ")
        if request.deadline_ms and time.monotonic() - start > request.deadline_ms / 1000:
            yield finished(inference_pb2.FINISH_REASON_DEADLINE)
            return
        time.sleep(0.01)


class Peer(inference_pb2_grpc.InferenceServicer, admin_pb2_grpc.AdminServicer):
    """Serves one home until it is closed."""

    def __init__(self, home: Path, *options: tuple[str, int]) -> None:
        self.home = home
        self.script: Script = echo
        self.requests: list[GenerateRequest] = []
        self.attached: list[inference_pb2.AttachRequest] = []
        self.arrived = threading.Event()
        self.left = threading.Event()
        self.cancelled: list[str] = []
        self.estimate = inference_pb2.EstimateResponse()
        self.sessions = SessionsPeer()
        self.status = admin_pb2.StatusResponse(
            process=admin_pb2.ProcessStatus(
                name="ds4-daemon", version="0.1.0", pid=4321, uptime_s=3725.0,
                state=admin_pb2.PROCESS_STATE_SERVING, home=str(home), resident_bytes=3 * 2**30,
            ),
            model=admin_pb2.ModelStatus(
                name="nano", file_format="gguf", context_tokens=8192, device="cpu", dtype="float32",
                fingerprint=b"\x01\xff",
            ),
            engine=admin_pb2.EngineStatus(
                running=1,
                requests=[
                    admin_pb2.RequestStatus(
                        request_id="r7", phase=inference_pb2.PHASE_DECODE, prompt_tokens=12,
                        prefilled_tokens=12, generated_tokens=34, max_tokens=100, tokens_per_s=64.0,
                        client=types_pb2.ClientInfo(name="ds4ctl", instance="99"), age_s=2.5,
                    )
                ],
                totals=admin_pb2.Totals(requests=2**40),
            ),
        )  # fmt: skip
        run_dir = home / "run"
        run_dir.mkdir(mode=0o700, exist_ok=True)
        self._server = grpc.server(futures.ThreadPoolExecutor(8), options=options)
        inference_pb2_grpc.add_InferenceServicer_to_server(self, self._server)
        admin_pb2_grpc.add_AdminServicer_to_server(self, self._server)
        sessions_pb2_grpc.add_SessionsServicer_to_server(self.sessions, self._server)
        self.health = health.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self.health, self._server)
        self._server.add_insecure_port(f"unix:{run_dir / 'daemon.sock'}")
        self._server.start()

    def set_serving(self, serving: bool) -> None:
        known = health_pb2.HealthCheckResponse
        self.health.set("", known.SERVING if serving else known.NOT_SERVING)

    def close(self) -> None:
        self._server.stop(0).wait()

    def Generate(  # noqa: N802
        self, request: GenerateRequest, context: Any
    ) -> Iterator[GenerateEvent]:
        self.requests.append(request)
        self.arrived.set()
        context.add_callback(self.left.set)
        for offset, event in enumerate(self.script(request, context)):
            event.request_id = request.request_id
            event.offset = offset
            yield event

    def Attach(  # noqa: N802
        self, request: inference_pb2.AttachRequest, context: Any
    ) -> Iterator[GenerateEvent]:
        """The events of the last request from an offset on, by the script of the moment."""
        self.attached.append(request)
        for offset, event in enumerate(self.script(self.requests[-1], context)):
            event.request_id = request.request_id
            event.offset = offset
            if offset >= request.offset:
                yield event

    def Cancel(  # noqa: N802
        self, request: inference_pb2.CancelRequest, context: Any
    ) -> inference_pb2.CancelResponse:
        self.cancelled.append(request.request_id)
        return inference_pb2.CancelResponse(cancelled=request.request_id == "r7")

    def Estimate(  # noqa: N802
        self, request: inference_pb2.EstimateRequest, context: Any
    ) -> inference_pb2.EstimateResponse:
        self.requests.append(request.request)
        return self.estimate

    def Tokenize(  # noqa: N802
        self, request: inference_pb2.TokenizeRequest, context: Any
    ) -> inference_pb2.TokenizeResponse:
        text = request.prompt.text or request.prompt.conversation.messages[-1].content
        response = inference_pb2.TokenizeResponse(tokens=types_pb2.TokenIds(ids=text.encode()))
        if request.pieces:
            response.pieces.extend(
                types_pb2.TokenPiece(id=byte, piece=bytes([byte])) for byte in text.encode()
            )
        return response

    def Detokenize(  # noqa: N802
        self, request: inference_pb2.DetokenizeRequest, context: Any
    ) -> inference_pb2.DetokenizeResponse:
        return inference_pb2.DetokenizeResponse(text=bytes(request.tokens.ids).decode())

    def Render(  # noqa: N802
        self, request: inference_pb2.RenderRequest, context: Any
    ) -> inference_pb2.RenderResponse:
        turns = [
            f"<{types_pb2.Role.Name(one.role)}>{one.content}"
            for one in request.conversation.messages
        ]
        return inference_pb2.RenderResponse(text="".join(turns))

    def Status(  # noqa: N802
        self, request: admin_pb2.StatusRequest, context: Any
    ) -> admin_pb2.StatusResponse:
        return self.status


@contextlib.contextmanager
def serving(home: Path, *options: tuple[str, int]) -> Iterator[Peer]:
    """A peer that serves `home` inside the block."""
    peer = Peer(home, *options)  # type: ignore[abstract]  # the rest answers UNIMPLEMENTED
    try:
        yield peer
    finally:
        peer.close()
