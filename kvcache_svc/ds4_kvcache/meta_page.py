"""How long LMDB takes its file to be, read from the file before it is mapped.

Reading a mapped page that is not there is SIGBUS, which ends the process. Called by `disk`.
"""

import os
import struct
from collections.abc import Iterable
from pathlib import Path

from ds4_kvcache.errors import DamagedError

PAGE_HEADER_BYTES = 16

# The head of a meta page of LMDB 0.9 after the page header: magic, version, address, size of the
# map, then two tables of 48 bytes (the first one's first u32 is the page size), last page, number
# of the transaction.
_META = struct.Struct("<IIQQ" + "I44x" + "48x" + "QQ")
_MAGIC = 0xBEEFC0DE


def check_length(file: Path) -> None:
    """Raise DamagedError when an environment's file ends before the pages that it counts.

    A file that does not exist or is empty is a new one.
    """
    try:
        with file.open("rb") as opened:
            head = opened.read(64 * 1024)
            length = os.fstat(opened.fileno()).st_size
    except FileNotFoundError:
        return
    if not length:
        return
    metas = [meta for meta in _metas(head) if meta is not None]
    if not metas:
        raise DamagedError("STORE_DAMAGED", "the file of the store has no valid meta page")
    last_page, page_bytes, _ = max(metas, key=lambda meta: meta[2])
    if (last_page + 1) * page_bytes > length:
        raise DamagedError(
            "STORE_CUT_SHORT",
            f"the file of the store has {length} bytes, not {(last_page + 1) * page_bytes}",
        )


def _metas(head: bytes) -> Iterable[tuple[int, int, int] | None]:
    """Last page, page size and transaction of the two meta pages, None for one that is none."""
    first = _meta(head, 0)
    sizes = [first[1]] if first else [4096, 16_384, 32_768]
    return [first, *(_meta(head, size) for size in sizes)]


def _meta(head: bytes, offset: int) -> tuple[int, int, int] | None:
    start = offset + PAGE_HEADER_BYTES
    if len(head) < start + _META.size:
        return None
    magic, version, _, _, page_bytes, last_page, transaction = _META.unpack_from(head, start)
    sane = page_bytes in (1 << power for power in range(9, 17))
    return (
        (last_page, page_bytes, transaction) if magic == _MAGIC and version == 1 and sane else None
    )
