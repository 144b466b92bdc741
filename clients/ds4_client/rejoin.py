"""How a reader that lost its call finds its way back into the same request.

Owns the place in the events (the next offset), what counts as a lost call, and how long coming back
is tried. Knows no call: both clients ask it what to send and how long to pause before they do.
"""

import time

from ds4.v1 import inference_pb2, types_pb2

from ds4_client.errors import CancelledError, Ds4Error, InternalError, NotRunningError

# A restart of the daemon with a model in the page cache, and some; a large one takes longer.
PATIENCE_S = 60.0
# As soon as the socket is there again, and yet a call a tenth of a second costs nothing.
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.05, 1.0
# A daemon that says these stops or starts; the request is in its journal meanwhile.
_PASSING = frozenset({"LOADING", "DRAINING", "DRAINED", "ENGINE_FAILED"})


class Place:
    """Where a reader is in the events of one request.

    `patience_s` None: a lost call is an error at once, as for requests that end with their call.
    """

    def __init__(
        self,
        request_id: str,
        client: types_pb2.ClientInfo,
        patience_s: float | None,
        offset: int | None = None,
    ) -> None:
        """`offset` None: the request was just sent, and is only rejoined once it was accepted."""
        self.request_id = request_id
        self.offset = offset or 0
        self._client = client
        self._patience_s = patience_s
        self._accepted = offset is not None
        self._asked: int | None = None
        self._lost_s: float | None = None
        self._pause_s = _FIRST_PAUSE_S

    def took(self, event: inference_pb2.GenerateEvent) -> None:
        """An event arrived: the next one is wanted from now on."""
        self.offset = event.offset + 1
        self._accepted = True
        self._lost_s, self._pause_s = None, _FIRST_PAUSE_S

    def request(self) -> inference_pb2.AttachRequest:
        """What to send to go on."""
        self._asked = self.offset
        return inference_pb2.AttachRequest(
            request_id=self.request_id, offset=self.offset, client=self._client
        )

    @property
    def at_end(self) -> bool:
        """Whether a call that now ends without an error had nothing to give: it asked for what
        follows the last event of all."""
        return self._asked == self.offset > 0

    def pause_s(self, error: Ds4Error) -> float | None:
        """How long to wait before going on after this error; None: it is not to be mended."""
        if self._patience_s is None or not self._accepted or not _lost(error):
            return None
        now_s = time.monotonic()
        if self._lost_s is None:
            self._lost_s = now_s
        if now_s - self._lost_s >= self._patience_s:
            return None
        pause_s, self._pause_s = self._pause_s, min(self._pause_s * 2, _LONGEST_PAUSE_S)
        return pause_s


def _lost(error: Ds4Error) -> bool:
    """Whether the call broke, and not the request."""
    if isinstance(error, InternalError):
        return error.reason == "STREAM_CUT"
    # A server that stops cancels its calls; a cancelled request would have told its end.
    return isinstance(error, NotRunningError | CancelledError) or error.reason in _PASSING
