"""Whose values a store holds: the fingerprint, and what must be the same with it.

Kept as JSON in the store's own table `meta`, and compared whenever a daemon opens it.
"""

import json
from dataclasses import asdict, dataclass

from ds4_runtime.kv_keys import fingerprint_digest

from ds4_kvcache.errors import DamagedError, RequestError

_MOST_JSON_CHARACTERS = 64_000


@dataclass(frozen=True, slots=True)
class Identity:
    """The fingerprint's canonical JSON, the layout and size of blocks, and a name for people."""

    fingerprint_json: str
    layout_version: int
    block_bytes: int
    model_name: str = ""

    @property
    def digest(self) -> bytes:
        return fingerprint_digest(self.fingerprint_json)

    def check(self, digest: bytes) -> None:
        """Raise RequestError unless `digest` is that of the JSON."""
        if len(self.fingerprint_json) > _MOST_JSON_CHARACTERS:
            raise RequestError(
                "FINGERPRINT_TOO_LONG",
                f"the fingerprint has {len(self.fingerprint_json)} characters",
                f"send digests of what is large, and {_MOST_JSON_CHARACTERS} at most",
            )
        try:
            own = self.digest
        except ValueError as error:
            raise RequestError(
                "FINGERPRINT_NOT_CANONICAL",
                str(error),
                "sort its keys and leave out spaces, as ds4_runtime.kv_keys.canonical_json does",
            ) from error
        if own != digest:
            raise RequestError(
                "FINGERPRINT_MISMATCH",
                f"the digest {digest.hex()[:16]}… is not the SHA-256 of the fingerprint's JSON",
                "send the digest of the very text that is sent",
            )

    def check_same(self, other: "Identity") -> None:
        """Raise RequestError when `other`, of the same fingerprint, has another form of records."""
        for name in ("layout_version", "block_bytes"):
            ours, theirs = getattr(self, name), getattr(other, name)
            if ours != theirs:
                raise RequestError(
                    "LAYOUT_MISMATCH",
                    f"{name} is {theirs}, and {ours} in what is stored under this fingerprint",
                    "make what changes the layout a part of the fingerprint",
                )

    def pack(self) -> bytes:
        return json.dumps(asdict(self)).encode()

    @classmethod
    def unpack(cls, text: bytes) -> "Identity":
        """Raises DamagedError."""
        try:
            identity = cls(**json.loads(text))
            _ = identity.digest
        except (TypeError, ValueError, RecursionError) as error:
            raise DamagedError("STORE_DAMAGED", "a store does not say whose it is") from error
        return identity
