"""What the synchronous clients share: calls over one channel, explained errors, and its closing.

Knows no service. The base of `Client`, `Sessions` and `KvCache`.
"""

from collections.abc import Callable
from types import TracebackType
from typing import Self, TypeVar

import grpc

from ds4_client.channel import Address

# Long enough for the longest prompt to be tokenized behind a busy engine, short enough for a
# person.
CALL_TIMEOUT_S = 30.0

_R = TypeVar("_R")


class Caller:
    """`_channel` and `address` are the subclass's to set."""

    address: Address
    _channel: grpc.Channel
    _timeout_s = CALL_TIMEOUT_S

    def _call(
        self, method: Callable[..., _R], request: object, timeout_s: float | None = None
    ) -> _R:
        try:
            return method(request, timeout=timeout_s or self._timeout_s)
        except grpc.RpcError as error:
            raise self.address.explain(error) from None

    def close(self) -> None:
        """Close the connection; running requests are cancelled."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
