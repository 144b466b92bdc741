"""Which stored blocks a person means: keys and fingerprints by their first digits.

The contract takes whole first bytes; here an odd number of digits is enough too, and a fingerprint
must be that of one store. Called by the commands of `ds4ctl cache`.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ds4.v1.kvstore_pb2 import Selection
    from ds4_client.kvcache import KvCacheClient

_SHOWN_DIGITS = 16


@dataclass(frozen=True, slots=True)
class Choice:
    """The conditions of a command line, which hold together; what is not given is None."""

    fingerprint: str | None = None  # the first digits of it
    salt: str | None = None
    key: str | None = None  # likewise
    idle_s: float | None = None

    @property
    def anything(self) -> bool:
        """Whether there is no condition."""
        return self == Choice()

    def selection(self, client: "KvCacheClient") -> "Selection":
        """The same for the service. Raises NotFoundError and InvalidRequestError."""
        from ds4.v1.kvstore_pb2 import Selection

        return Selection(
            fingerprint=find_fingerprint(client, self.fingerprint),
            salt=self.salt,
            key=find_key(client, self.key),
            idle_s=self.idle_s or 0,
        )


def find_key(client: "KvCacheClient", digits: str | None) -> bytes:
    """The key that begins with these digits, or as much of it as the service can search by.

    None gives no bytes. Raises NotFoundError and InvalidRequestError.
    """
    from ds4_client import InvalidRequestError, NotFoundError

    if digits is None:
        return b""
    if len(digits) % 2 == 0:
        return bytes.fromhex(digits)
    found: list[bytes] = []
    several = False
    for last in "0123456789abcdef":
        try:
            nodes = client.inspect(bytes.fromhex(digits + last), brief=True).nodes
            found += [node.key for node in nodes]
        except NotFoundError:
            continue
        except InvalidRequestError as error:
            if error.reason != "AMBIGUOUS_KEY":
                raise
            several = True
    if several or len(found) > 1:
        raise InvalidRequestError(
            "AMBIGUOUS_KEY", f"several keys begin with {digits}", "give more of the key"
        )
    if not found:
        raise NotFoundError(
            "NO_SUCH_BLOCK", f"no stored key begins with {digits}", "see `ds4ctl cache ls`"
        )
    return found[0]


def find_fingerprint(client: "KvCacheClient", digits: str | None) -> bytes:
    """The fingerprint of the one store whose fingerprint begins with these digits.

    None gives no bytes. Raises NotFoundError and InvalidRequestError, which tell those there are.
    """
    from ds4_client import InvalidRequestError, NotFoundError

    if digits is None:
        return b""
    stores = client.stat().stores
    found = [one.fingerprint for one in stores if one.fingerprint.hex().startswith(digits)]
    if len(found) == 1:
        return found[0]
    known = ", ".join(
        f"{one.fingerprint.hex()[:_SHOWN_DIGITS]} ({one.model_name})" for one in stores
    )
    if found:
        raise InvalidRequestError(
            "AMBIGUOUS_FINGERPRINT",
            f"{len(found)} fingerprints begin with {digits}",
            f"give more of it; there are {known}",
        )
    raise NotFoundError(
        "NO_SUCH_FINGERPRINT",
        f"no stored fingerprint begins with {digits}",
        f"there are {known}" if known else "nothing is stored",
    )
