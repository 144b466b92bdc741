"""From exceptions to gRPC statuses, in one place: handlers raise, this interceptor translates.

An exception with `reason`, `message` and `hint` becomes a status whose details are the message and
whose trailing metadata are `ds4-reason` and `ds4-hint` (percent-encoded: metadata must be ASCII).
Any other is a defect: it is logged with its traceback, and the client is told INTERNAL. Installed
by `server`.
"""

from __future__ import annotations  # gRPC's classes are generic in their stubs only

import contextlib
import inspect
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import grpc
import grpc.aio
import structlog

# Of a message or hint that echoes input; gRPC refuses to send trailers of more than 8 KB.
_MOST_CHARACTERS = 500

REASON_KEY = "ds4-reason"
HINT_KEY = "ds4-hint"

if TYPE_CHECKING:
    _Context = grpc.aio.ServicerContext[Any, Any]
    _Handler = grpc.RpcMethodHandler[Any, Any]
    _Behaviour = Callable[[Any, _Context], Any]
    _Wrapped = Callable[[Any, _Context], Awaitable[Any]]

_log = structlog.get_logger()


class FaultInterceptor(grpc.aio.ServerInterceptor):
    """Wraps every handler, whatever it streams."""

    def __init__(self, status_codes: Mapping[type[Exception], grpc.StatusCode]) -> None:
        self._status_codes = status_codes

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[_Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> _Handler | None:
        """The handler of the call, with its faults translated."""
        handler = await continuation(handler_call_details)
        if handler is None:  # gRPC answers UNIMPLEMENTED itself
            return None
        method = handler_call_details.method
        kind = "stream" if handler.request_streaming else "unary"
        kind += "_stream" if handler.response_streaming else "_unary"
        wrap = self._streaming if handler.response_streaming else self._single
        make = getattr(grpc, f"{kind}_rpc_method_handler")
        wrapped: _Handler = make(
            wrap(getattr(handler, kind), method),
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )
        return wrapped

    def _single(self, behaviour: _Behaviour, method: str) -> _Wrapped:
        async def answer(request: Any, context: _Context) -> Any:
            try:
                response = behaviour(request, context)
                return await response if inspect.isawaitable(response) else response
            except Exception as error:  # noqa: BLE001 (the one place that translates)
                await self._abort(error, method, context)

        return answer

    def _streaming(self, behaviour: _Behaviour, method: str) -> _Wrapped:
        async def answer(request: Any, context: _Context) -> None:
            try:
                responses = behaviour(request, context)
                if inspect.isawaitable(responses):
                    await responses
                    return
                # Written one by one, so that a call which ends early closes the handler's generator
                # now, not when it is collected.
                async with contextlib.aclosing(responses):
                    async for response in responses:
                        await context.write(response)
            except Exception as error:  # noqa: BLE001 (the one place that translates)
                await self._abort(error, method, context)

        return answer

    async def _abort(self, error: Exception, method: str, context: _Context) -> None:
        if isinstance(error, (grpc.aio.AbortError, grpc.aio.UsageError)) or context.cancelled():
            raise error
        code, reason, message, hint = self._explain(error, method)
        message, hint = _cut(message), _cut(hint)
        if code in (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN):
            _log.error("call failed", method=method, reason=reason, exc_info=error)
        else:
            _log.info("call refused", method=method, reason=reason, message=message)
        await context.abort(
            code,
            message,
            trailing_metadata=((REASON_KEY, quote(reason)), (HINT_KEY, quote(hint, safe=" "))),
        )

    def _explain(self, error: Exception, method: str) -> tuple[grpc.StatusCode, str, str, str]:
        for base in type(error).__mro__:
            if base in self._status_codes:
                return (
                    self._status_codes[base],
                    str(getattr(error, "reason", "INTERNAL")),
                    str(getattr(error, "message", error)),
                    str(getattr(error, "hint", "")),
                )
        if isinstance(error, NotImplementedError):  # what generated servicers raise
            return (
                grpc.StatusCode.UNIMPLEMENTED,
                "NOT_BUILT",
                f"{method.lstrip('/')} is in the contract but not served yet",
                "see CHANGELOG.md for what this version serves",
            )
        return (
            grpc.StatusCode.INTERNAL,
            "INTERNAL",
            f"the call failed: {type(error).__name__}",
            "the log of this process has the details",
        )


def _cut(text: str) -> str:
    return text if len(text) <= _MOST_CHARACTERS else f"{text[:_MOST_CHARACTERS]} ..."
