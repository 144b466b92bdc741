"""The journal: what was promised to detached requests, on disk before it is told to anyone.

One file a request, appended to by one thread, off the event loop. A record that was written
survives the end of the process, however it comes; a second thread brings what was written to the
disk itself about once a second, for the end of the machine. Knows bytes and names, no request and
no model: `rpc.kept` and `rpc.resume` say what they mean. Made by `main`.
"""

import asyncio
import contextlib
import hashlib
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import structlog

from ds4_daemon.errors import ConfigError, OverloadedError
from ds4_daemon.journal.records import MARK, Kind, Record, pack, read

# At most so much of what was told is lost with the machine's power.
_SYNC_EVERY_S = 1.0
_SUFFIX = ".journal"

_log = structlog.get_logger()


class _Write(NamedTuple):
    """Bytes for the end of a page; `done` is called on the event loop with whether they are there.

    `data` None: remove the file.
    """

    page: "Page"
    data: bytes | None
    done: Callable[[bool], None] | None


class Page:
    """The file of one request. To be used on the event loop."""

    def __init__(self, journal: "Journal", path: Path, size_bytes: int = 0) -> None:
        self.path = path
        self.size_bytes = size_bytes
        # Set by the writing thread: the file is gone, and the request is not promised any longer.
        self.broken = False
        self._journal = journal

    def append(self, kind: Kind, payload: bytes, done: Callable[[bool], None] | None) -> None:
        """Have a record written; `done` is called once it survives the end of the process."""
        data = pack(kind, payload)
        if not self.size_bytes:
            data = MARK + data
        self.size_bytes += len(data)
        self._journal.put(_Write(self, data, done))

    def remove(self) -> None:
        """Have the file removed."""
        self._journal.put(_Write(self, None, None))


class Found(NamedTuple):
    """A file of an earlier process."""

    page: Page
    records: list[Record]
    age_s: float  # since it was last written


class Journal:
    """The folder and its threads. Made on the event loop, after the home is claimed."""

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        """Raises ConfigError where the folder cannot be made."""
        self.limit_bytes = limit_bytes
        self.size_bytes = 0
        self._folder = folder
        self._loop = asyncio.get_running_loop()
        self._writes: queue.SimpleQueue[_Write | None] = queue.SimpleQueue()
        self._unsynced: set[Path] = set()
        self._lock = threading.Lock()  # around `_unsynced`
        self._closed = threading.Event()
        try:
            folder.mkdir(mode=0o700, exist_ok=True)
            folder.chmod(0o700)  # prompts are in there
        except OSError as error:
            raise ConfigError(
                "JOURNAL_NOT_USABLE",
                f"the folder {folder} cannot be made: {error.strerror}",
                "make room for it, or set DS4_HOME to a directory that you can write",
            ) from error
        self._writer = threading.Thread(target=self._write_all, name="journal", daemon=True)
        self._syncer = threading.Thread(target=self._sync_all, name="journal-sync", daemon=True)
        self._writer.start()
        self._syncer.start()

    def page(self, request_id: str, first_bytes: int) -> Page:
        """A new file for a request whose first record has about this many bytes.

        Raises OverloadedError where the journal would become larger than it may.
        """
        if self.size_bytes + first_bytes > self.limit_bytes:
            raise OverloadedError(
                "JOURNAL_FULL",
                f"the journal holds {self.size_bytes} bytes of detached requests, and may hold "
                f"{self.limit_bytes}",
                "leave out `detach`, wait for others to end, or raise journal_bytes in the "
                "daemon's settings",
            )
        return Page(self, self._folder / self.name_of(request_id))

    def found(self) -> Iterator[Found]:
        """The files of earlier processes, cut at their last whole record, oldest first. Blocks.

        To be called before anything is written. What holds no request is removed.
        """
        files = self._folder.glob(f"*{_SUFFIX}")
        for path in sorted(files, key=lambda path: path.stat().st_mtime):
            try:
                age_s = max(0.0, time.time() - path.stat().st_mtime)
                data = path.read_bytes()
                records, whole_bytes = read(data)
                if not records or records[0].kind is not Kind.REQUEST:
                    _log.warning("journal file removed", file=path.name, why="it holds no request")
                    path.unlink()
                    continue
                if whole_bytes < len(data):
                    _log.info(
                        "journal file cut", file=path.name, torn_bytes=len(data) - whole_bytes
                    )
                    os.truncate(path, whole_bytes)
            except OSError as error:
                _log.warning("journal file not read", file=path.name, why=str(error))
                continue
            self.size_bytes += whole_bytes
            yield Found(Page(self, path, whole_bytes), records, age_s)

    async def close(self, patience_s: float) -> None:
        """Write and sync what waits, and end the threads; wait no longer than `patience_s`."""
        self._writes.put(None)
        await asyncio.to_thread(self._writer.join, patience_s)
        self._closed.set()
        await asyncio.to_thread(self._syncer.join, patience_s)

    def put(self, write: _Write) -> None:
        """For `Page`."""
        self.size_bytes += len(write.data) if write.data is not None else -write.page.size_bytes
        self._writes.put(write)

    @staticmethod
    def name_of(request_id: str) -> str:
        """The name of a request's file: an id may be more than a file system takes."""
        return hashlib.sha256(request_id.encode()).hexdigest()[:32] + _SUFFIX

    # The writing thread.

    def _write_all(self) -> None:
        while (write := self._writes.get()) is not None:
            done: list[tuple[Callable[[bool], None], bool]] = []
            more: _Write | None = write
            while more is not None:
                written = self._write(more)
                if more.done is not None:
                    done.append((more.done, written))
                more = self._at_once()
            self._tell(done)

    def _at_once(self) -> _Write | None:
        """What waits already, so that a step of many sequences wakes the event loop once."""
        try:
            write = self._writes.get_nowait()
        except queue.Empty:
            return None
        if write is None:
            self._writes.put(None)  # for the outer loop
        return write

    def _write(self, write: _Write) -> bool:
        page, data = write.page, write.data
        if data is None:
            self._unlink(page)
            return True
        if page.broken:
            return False
        try:
            _append(page.path, data, create=data.startswith(MARK))
        except OSError as error:
            # What is not whole must not be gone on with; what was told already stays told.
            page.broken = True
            self._unlink(page)
            _log.warning("journal not written", file=page.path.name, why=str(error))
            return False
        with self._lock:
            self._unsynced.add(page.path)
        return True

    def _unlink(self, page: Page) -> None:
        with contextlib.suppress(OSError):
            page.path.unlink()

    def _tell(self, done: list[tuple[Callable[[bool], None], bool]]) -> None:
        def tell() -> None:
            for call, written in done:
                call(written)

        if done:
            with contextlib.suppress(RuntimeError):  # the loop may be gone by now
                self._loop.call_soon_threadsafe(tell)

    # The syncing thread.

    def _sync_all(self) -> None:
        while not self._closed.wait(_SYNC_EVERY_S):
            self._sync()
        self._sync()

    def _sync(self) -> None:
        with self._lock:
            paths, self._unsynced = self._unsynced, set()
        for path in [*paths, self._folder] if paths else []:
            # Removed meanwhile, or a disk that fails: it was tried, and no more was promised.
            with contextlib.suppress(OSError):
                descriptor = os.open(path, os.O_RDONLY)
                try:
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)


def _append(path: Path, data: bytes, *, create: bool) -> None:
    """Write at the end of the file. A new one takes the place of what an earlier request left."""
    flags = os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC
    if create:
        flags |= os.O_CREAT | os.O_TRUNC
    # Opened anew each time: one file a waiting request would use up what a process may open.
    descriptor = os.open(path, flags, 0o600)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(descriptor, view) :]
    finally:
        os.close(descriptor)
