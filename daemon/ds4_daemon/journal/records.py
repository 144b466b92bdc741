"""The bytes of a journal file: a mark, then records, each with its length and its checksum.

Owns the format that docs/journal-format.md describes. A record counts only whole: a process that is
killed while it writes leaves a part of one, which is cut off when the file is read. Knows neither
folders nor what payloads mean. Used by `folder`.
"""

import enum
import struct
import zlib
from typing import NamedTuple

from ds4_daemon.errors import DaemonError

# The last two digits count versions: a file of another one is not read.
MARK = b"ds4jnl01"
# Length of what follows the checksum, CRC-32 of the same, kind.
_HEAD = struct.Struct("<IIB")
# More than gRPC lets through in one message; a length above it is no length.
_LARGEST_BYTES = 80 * 1024 * 1024


class Kind(enum.IntEnum):
    """What a record is."""

    REQUEST = 1  # the request as it was accepted; the first of every file and in no other place
    EVENTS = 2  # events that came into being together, in order
    RESUMED = 3  # the daemon was started again and goes on with it


class Record(NamedTuple):
    """One record."""

    kind: Kind
    payload: bytes


class Read(NamedTuple):
    """The whole records of a file, and how many bytes of it they take with the mark."""

    records: list[Record]
    whole_bytes: int


def pack(kind: Kind, payload: bytes) -> bytes:
    """The record as it is appended."""
    body = bytes([kind]) + payload
    return _HEAD.pack(len(body), zlib.crc32(body), kind) + payload


def read(data: bytes) -> Read:
    """The records up to the first that is torn or damaged; none where the mark is missing."""
    if not data.startswith(MARK):
        return Read([], 0)
    records: list[Record] = []
    at = len(MARK)
    while len(data) - at >= _HEAD.size:
        length, checksum, _ = _HEAD.unpack_from(data, at)
        end = at + _HEAD.size - 1 + length
        body = data[at + _HEAD.size - 1 : end]
        if not 0 < length <= _LARGEST_BYTES or len(body) < length or zlib.crc32(body) != checksum:
            break
        if body[0] in set(Kind):  # one of a later version is passed over
            records.append(Record(Kind(body[0]), body[1:]))
        at = end
    return Read(records, at)


def pack_parts(parts: list[bytes]) -> bytes:
    """Several byte strings in one, each after its length."""
    return b"".join(struct.pack("<I", len(part)) + part for part in parts)


def read_parts(payload: bytes) -> list[bytes]:
    """What `pack_parts` was given. Raises DaemonError where the lengths do not add up."""
    parts: list[bytes] = []
    at = 0
    while at < len(payload):
        if at + 4 > len(payload):
            raise _bad_parts()
        (length,) = struct.unpack_from("<I", payload, at)
        at += 4
        if at + length > len(payload):
            raise _bad_parts()
        parts.append(payload[at : at + length])
        at += length
    return parts


def _bad_parts() -> DaemonError:
    return DaemonError("JOURNAL_DAMAGED", "a record of the journal is not in its form")
