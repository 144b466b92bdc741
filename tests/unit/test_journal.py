"""The journal's files: whole records survive whatever the process met, and nothing else is read."""

import asyncio
import itertools
import stat
import struct
import zlib
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from ds4_daemon.errors import DaemonError, OverloadedError
from ds4_daemon.journal.folder import Journal, Page
from ds4_daemon.journal.records import MARK, Kind, Record, pack, pack_parts, read, read_parts

RECORDS = [
    Record(Kind.REQUEST, b"what was asked"),
    Record(Kind.EVENTS, b""),
    Record(Kind.EVENTS, bytes(range(256))),
    Record(Kind.RESUMED, b""),
]
DATA = MARK + b"".join(pack(*record) for record in RECORDS)


def with_journal(
    folder: Path, body: Callable[[Journal], Awaitable[None]], limit_bytes: int = 10_000
) -> None:
    async def main() -> None:
        journal = Journal(folder, limit_bytes)
        try:
            await body(journal)
        finally:
            await journal.close(5)

    asyncio.run(main())


async def append(page: Page, kind: Kind, payload: bytes) -> bool:
    """Whether it was written."""
    written: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
    page.append(kind, payload, written.set_result)
    return await asyncio.wait_for(written, 10)


def test_bytes_are_as_documented() -> None:
    """A record is length, CRC-32, kind and payload, after the mark of the file."""
    body = b"\x02abc"
    assert pack(Kind.EVENTS, b"abc") == struct.pack("<II", 4, zlib.crc32(body)) + body
    assert read(DATA) == (RECORDS, len(DATA))
    assert read(b"ds4jnl02" + DATA[8:]) == ([], 0)
    later = struct.pack("<II", 2, zlib.crc32(b"\x63x")) + b"\x63x"
    assert read(DATA + later) == (RECORDS, len(DATA) + len(later))


def test_a_torn_file_ends_at_its_last_whole_record() -> None:
    """Cut at any byte, and damaged at any byte, a file gives whole records only, from its start."""
    ends = [len(MARK), *itertools.accumulate((len(pack(*r)) for r in RECORDS), initial=len(MARK))]
    for length in range(len(MARK), len(DATA)):
        records, whole_bytes = read(DATA[:length])
        assert whole_bytes == max(end for end in ends if end <= length)
        assert records == RECORDS[: len(records)]
        damaged = bytearray(DATA)
        damaged[length] ^= 0x40
        records, whole_bytes = read(bytes(damaged))
        assert whole_bytes <= length
        assert records == RECORDS[: len(records)]


def test_parts_come_back_as_they_were() -> None:
    """Byte strings keep their borders, and lengths that do not add up are refused."""
    parts = [b"", b"a", bytes(1000)]
    assert read_parts(pack_parts(parts)) == parts
    for cut in (b"\x01", pack_parts([b"abc"])[:-1]):
        with pytest.raises(DaemonError):
            read_parts(cut)


def test_a_later_process_finds_what_was_written(tmp_path: Path) -> None:
    """Records are found in order, torn ends are cut off, and what was removed is not there."""
    folder = tmp_path / "journal"

    async def first(journal: Journal) -> None:
        kept, gone = journal.page("kept", 10), journal.page("gone", 10)
        for page in (kept, gone):
            assert await append(page, Kind.REQUEST, b"asked")
        assert await append(kept, Kind.EVENTS, b"one")
        gone.remove()
        kept.append(Kind.EVENTS, b"two", None)  # nobody waits: closing writes it all the same

    with_journal(folder, first)
    (path,) = folder.iterdir()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with path.open("ab") as file:
        file.write(pack(Kind.EVENTS, b"torn")[:-1])
    (folder / "0.journal").write_bytes(MARK)

    async def second(journal: Journal) -> None:
        (found,) = journal.found()
        assert found.records == [(Kind.REQUEST, b"asked"), (2, b"one"), (2, b"two")]
        assert found.page.path == path
        assert await append(found.page, Kind.RESUMED, b"")

    with_journal(folder, second)
    assert [record.payload for record in read(path.read_bytes()).records][-2:] == [b"two", b""]
    assert list(folder.iterdir()) == [path]


def test_a_file_that_cannot_be_written_is_removed(tmp_path: Path) -> None:
    """After a failed write nothing of that request is left, so that nothing contradicts it."""

    async def body(journal: Journal) -> None:
        page, other = journal.page("a", 10), journal.page("b", 10)
        assert await append(page, Kind.REQUEST, b"asked")
        assert await append(other, Kind.REQUEST, b"asked")
        page.path.unlink()
        page.path.mkdir()  # what no process can append to, root neither
        assert not await append(page, Kind.EVENTS, b"lost")
        page.path.rmdir()
        assert not await append(page, Kind.EVENTS, b"later")
        assert await append(other, Kind.EVENTS, b"fine")
        assert not page.path.exists()

    with_journal(tmp_path, body)


def test_the_journal_is_bounded(tmp_path: Path) -> None:
    """A request that would make it larger than it may be is refused, until another is gone."""

    async def body(journal: Journal) -> None:
        page = journal.page("a", 60)
        assert await append(page, Kind.REQUEST, bytes(60))
        with pytest.raises(OverloadedError) as full:
            journal.page("b", 60)
        assert full.value.reason == "JOURNAL_FULL"
        page.remove()
        assert journal.size_bytes == 0
        journal.page("b", 60)

    with_journal(tmp_path, body, limit_bytes=100)
