"""The text of stored prefixes, from the daemon's tokenizer; without a daemon there is none.

Token ids mean something to the model that they were made for only, so the daemon is asked whether
it has that one loaded.
"""

from collections.abc import Sequence
from types import TracebackType
from typing import Self

from ds4ctl.options import open_client

_MOST_CHARACTERS = 100


class Texts:
    """Asks one daemon, until it does not answer."""

    def __init__(self) -> None:
        self._client = open_client()
        self._fingerprint: bytes | None = None

    def of(self, fingerprint: bytes, token_ids: Sequence[int]) -> str:
        """How these tokens begin, on one line; empty where nobody can tell."""
        from ds4_client import Ds4Error

        try:
            if self._fingerprint is None:
                self._fingerprint = self._client.status().model.fingerprint
            if self._fingerprint != fingerprint or not token_ids:
                return ""
            text = self._client.detokenize(token_ids)
        except Ds4Error:
            self._fingerprint = b""
            return ""
        text = text.rstrip("\ufffd")  # the last token may be a part of a character
        line = "".join(one if one.isprintable() else " " for one in text)
        return line if len(line) <= _MOST_CHARACTERS else f"{line[:_MOST_CHARACTERS]}…"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._client.close()
