"""Records as they lie on disk: one zstd frame each, with the frame's own checksum.

The only module that knows zstandard. It does not know what is in a record: rows were packed by the
daemon, whose CRC-32 travels beside them. Called by `store` from several threads.
"""

import threading

import zstandard

from ds4_kvcache.errors import DamagedError

# Packed FP8 and FP4 rows have little but an uneven distribution of bytes, which level 1 takes in
# whole: level 3 was slower by 2 to 4 times and no smaller.
LEVEL = 1
# The type of a block that is one byte many times.
_REPEATED = 1

# A compressor must not be used by two threads at once, and making one costs as much as 100 KB.
_local = threading.local()


def compress(data: bytes) -> bytes:
    """One frame that holds `data`, its length and a checksum of it."""
    compressor = getattr(_local, "compressor", None)
    if compressor is None:
        compressor = zstandard.ZstdCompressor(
            level=LEVEL, write_checksum=True, write_content_size=True
        )
        _local.compressor = compressor
    frame: bytes = compressor.compress(data)
    return frame


def decompress(frame: bytes, raw_bytes: int) -> bytes:
    """The `raw_bytes` bytes in `frame`. Raises DamagedError when they are not what was put in."""
    try:
        _check(frame, raw_bytes)
        data: bytes = _decompressor().decompress(frame, allow_extra_data=False)
    except (zstandard.ZstdError, MemoryError) as error:
        raise DamagedError("FRAME_DAMAGED", f"a frame cannot be read: {error}") from error
    if len(data) != raw_bytes:
        raise DamagedError("FRAME_DAMAGED", f"a frame has {len(data)} bytes, not {raw_bytes}")
    return data


def decompress_into(frame: bytes, place: memoryview) -> None:
    """The same into a place of the record's length, with no copy between."""
    try:
        _check(frame, len(place))
        if _end(frame) != len(frame):
            raise DamagedError("FRAME_DAMAGED", f"a frame has not the {len(frame)} bytes it takes")
        found = _decompressor().stream_reader(frame).readinto(place)
    except (zstandard.ZstdError, MemoryError) as error:
        raise DamagedError("FRAME_DAMAGED", f"a frame cannot be read: {error}") from error
    if found != len(place):
        raise DamagedError("FRAME_DAMAGED", f"a frame has {found} bytes, not {len(place)}")


def _decompressor() -> zstandard.ZstdDecompressor:
    decompressor = getattr(_local, "decompressor", None)
    if decompressor is None:
        decompressor = _local.decompressor = zstandard.ZstdDecompressor()
    return decompressor


def _check(frame: bytes, raw_bytes: int) -> None:
    # The frame's header is not trusted: a flipped bit there must not allocate terabytes.
    if zstandard.frame_content_size(frame) != raw_bytes:
        raise DamagedError("FRAME_DAMAGED", "a frame does not say the length of its record")


def _end(frame: bytes) -> int:
    """Where a frame with a checksum ends (RFC 8878 §3.1.1); -1 for one without.

    A reader does not say whether it came to the checksum, or what was left after it.
    """
    if not zstandard.get_frame_parameters(frame).has_checksum:
        return -1
    at, last = zstandard.frame_header_size(frame), 0
    while not last and at < len(frame):
        block = int.from_bytes(frame[at : at + 3], "little")
        last, kind, size = block & 1, block >> 1 & 3, block >> 3
        at += 3 + (1 if kind == _REPEATED else size)
    return at + 4 if last else -1
