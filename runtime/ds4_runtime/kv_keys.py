"""Names of cached prefixes: the chain of SHA-256 keys that daemon and KV cache compute alike.

    fingerprint = SHA256(canonical JSON of all that cached values depend on)
    root        = SHA256("ds4kv" 01 | fingerprint | u16 length of salt | salt as UTF-8)
    key of i    = SHA256(key of i-1, or root | 128 token ids, u32 each)       all little endian

Pure functions of their arguments, the same in every process and on every machine; golden vectors
in tests/vectors hold them there. They know neither a model nor a store. A key is never cut short.
"""

import hashlib
import json
import struct
from collections.abc import Mapping, Sequence

# The least common multiple of the compression ratios 4 and 128: at a multiple of it no compressor
# holds a part of a row, and a block has the same number of rows of each kind.
BLOCK_TOKENS = 128
KEY_BYTES = 32
BLOCK_TOKEN_BYTES = 4 * BLOCK_TOKENS
SALT_MAX_BYTES = 255  # the name of a domain; its length is hashed as u16

# Bumped when the chain itself changes: no key of one version can then be one of another.
_DOMAIN = b"ds4kv\x01"


def canonical_json(parts: Mapping[str, object]) -> str:
    """The one JSON text of `parts`: keys sorted, no spaces, ASCII.

    Raises ValueError for NaN and infinities, which JSON has not, and TypeError for other types
    than JSON's.
    """
    return json.dumps(parts, sort_keys=True, separators=(",", ":"), allow_nan=False)


def fingerprint_digest(text: str) -> bytes:
    """The 32 bytes that stand for the canonical JSON `text`. Raises ValueError if it is not that.

    Text that is another writing of the same value would be another fingerprint for the same KV.
    """
    try:
        parts = json.loads(text)
        canonical = canonical_json(parts) if isinstance(parts, dict) else None
    except (ValueError, RecursionError):
        canonical = None
    if canonical != text:
        raise ValueError("the fingerprint is not a canonical JSON object")
    return hashlib.sha256(text.encode("ascii")).digest()


def root_key(fingerprint: bytes, salt: str = "") -> bytes:
    """Where the chain of a fingerprint's digest and a salt begins; `salt` keeps clients apart.

    Raises ValueError for a digest of another length and a salt of more than SALT_MAX_BYTES.
    """
    if len(fingerprint) != KEY_BYTES:
        raise ValueError(f"a fingerprint has {KEY_BYTES} bytes, this one {len(fingerprint)}")
    encoded = salt.encode()
    if len(encoded) > SALT_MAX_BYTES:
        raise ValueError(f"a salt has at most {SALT_MAX_BYTES} bytes, this one {len(encoded)}")
    length = struct.pack("<H", len(encoded))
    return hashlib.sha256(_DOMAIN + fingerprint + length + encoded).digest()


def pack_tokens(token_ids: Sequence[int]) -> bytes:
    """Token ids as they are hashed and stored: u32, little endian, 4 bytes each.

    Raises ValueError for what is no u32.
    """
    try:
        return struct.pack(f"<{len(token_ids)}I", *token_ids)
    except struct.error as error:
        raise ValueError(f"a token id is no unsigned 32 bit integer: {error}") from error


def unpack_tokens(packed: bytes) -> list[int]:
    """The token ids that `pack_tokens` wrote."""
    return list(struct.unpack(f"<{len(packed) // 4}I", packed))


def block_key(parent: bytes, packed_tokens: bytes) -> bytes:
    """The key of the block that follows `parent`, from the 512 bytes of its tokens.

    Raises ValueError for other lengths: a key of half a block would name nothing.
    """
    if len(parent) != KEY_BYTES or len(packed_tokens) != BLOCK_TOKEN_BYTES:
        raise ValueError(
            f"a key follows from {KEY_BYTES} and {BLOCK_TOKEN_BYTES} bytes, "
            f"not from {len(parent)} and {len(packed_tokens)}"
        )
    return hashlib.sha256(parent + packed_tokens).digest()


def block_keys(root: bytes, token_ids: Sequence[int]) -> list[bytes]:
    """The keys of all complete blocks of a prefix, in order. Raises ValueError as above."""
    packed = pack_tokens(token_ids)
    keys = []
    parent = root
    for start in range(0, len(packed) - BLOCK_TOKEN_BYTES + 1, BLOCK_TOKEN_BYTES):
        parent = block_key(parent, packed[start : start + BLOCK_TOKEN_BYTES])
        keys.append(parent)
    return keys
