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
    decompressor = getattr(_local, "decompressor", None)
    if decompressor is None:
        decompressor = _local.decompressor = zstandard.ZstdDecompressor()
    try:
        # The frame's header is not trusted: a flipped bit there must not allocate terabytes.
        if zstandard.frame_content_size(frame) != raw_bytes:
            raise DamagedError("FRAME_DAMAGED", "a frame does not say the length of its record")
        data: bytes = decompressor.decompress(frame, allow_extra_data=False)
    except (zstandard.ZstdError, MemoryError) as error:
        raise DamagedError("FRAME_DAMAGED", f"a frame cannot be read: {error}") from error
    if len(data) != raw_bytes:
        raise DamagedError("FRAME_DAMAGED", f"a frame has {len(data)} bytes, not {raw_bytes}")
    return data
