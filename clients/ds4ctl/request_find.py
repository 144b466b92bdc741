"""Which request a person means by the first characters of its id. Called by `cancel` and `attach`.

Only ids that nobody chose can be cut: of ids that a program chose, one may begin like another, and
`job-1` must never reach `job-12`.
"""

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ds4_client import Client

# As the client library draws them: 32 hexadecimal digits.
_DRAWN = re.compile(r"[0-9a-f]{32}")
SHORT_DIGITS = 8
_CUT = re.compile(r"[0-9a-f]{4,31}")


def short_id(request_id: str, all_ids: Iterable[str]) -> str:
    """As much of an id as tells it from all others; all of it where a program chose it."""
    if not _DRAWN.fullmatch(request_id):
        return request_id
    others = [other for other in all_ids if other != request_id]
    length = SHORT_DIGITS
    while any(other.startswith(request_id[:length]) for other in others):
        length += 1
    return request_id[:length]


def find_request(client: "Client", text: str) -> str:
    """The id that begins so; `text` itself where no request that runs or waits is meant by it.

    Raises InvalidRequestError where several begin so.
    """
    if not _CUT.fullmatch(text):
        return text
    ids = [one.request_id for one in client.status().engine.requests]
    found = [one for one in ids if _DRAWN.fullmatch(one) and one.startswith(text)]
    if text in ids or not found:
        return text
    if len(found) > 1:
        from ds4_client import InvalidRequestError

        raise InvalidRequestError(
            "AMBIGUOUS_REQUEST",
            f"{len(found)} requests have ids that begin with {text}",
            "give more digits; `ds4ctl ps` shows enough of them",
        )
    return found[0]
