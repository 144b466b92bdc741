"""The life of a process around its work: private directories, lock, temporary folder, signals.

    with claim(Home.find(), "daemon") as tenancy:      # before mlx is imported: it sets TMPDIR
        with stop_signals() as stop:                   # inside the event loop
            await stop.wait()                          # the first SIGTERM or SIGINT
    # the temporary folder is gone, the lock is free

A `Tenancy` is the proof that this process alone serves a home; `server` asks for one before it
touches a socket, because gRPC would bind a second server over the first and delete its socket on
the way out.
"""

import asyncio
import contextlib
import fcntl
import os
import shutil
import signal
import stat
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ds4_runtime.address import HOME_VARIABLE, Home
from ds4_runtime.errors import AlreadyRunningError, DirectoryError

# How long a refused process waits for the holder to write its pid, which it does right after
# locking.
_PID_WAIT_S = 0.5


@dataclass(frozen=True, slots=True)
class Tenancy:
    """This process serves `service` of `home`, and no other does while it lives."""

    home: Home
    service: str
    socket: Path
    tmp_dir: Path


@contextlib.contextmanager
def claim(home: Home, service: str) -> Iterator[Tenancy]:
    """Make the directories, take the lock and set TMPDIR; undo the last two on exit.

    Raises AddressError, DirectoryError, or AlreadyRunningError with the holder's pid.
    """
    socket = home.socket(service)
    make_home(home)
    with _locked(home, service), _private_tmp(home.tmp_dir, service) as tmp_dir:
        yield Tenancy(home, service, socket, tmp_dir)


def make_home(home: Home) -> None:
    """Create what is missing of a home and refuse one that others could tamper with."""
    try:
        home.path.parent.mkdir(parents=True, exist_ok=True)
        # A home that existed may be readable by others, but they must not be able to swap what is
        # in it.
        _make_dir(home.path, forbidden=stat.S_IWGRP | stat.S_IWOTH)
        for path in (home.run_dir, home.tmp_dir, home.log_dir):
            _make_dir(path, forbidden=stat.S_IRWXG | stat.S_IRWXO)
    except OSError as error:
        raise DirectoryError(
            "HOME_NOT_USABLE",
            f"the home {home.path} cannot be used: {error.strerror or error} ({error.filename})",
            f"set {HOME_VARIABLE} to a directory that you can write",
        ) from error


def _make_dir(path: Path, forbidden: int) -> None:
    """A real directory at `path`, owned by this user, with none of the `forbidden` mode bits."""
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=0o700)
    if path.is_symlink() or not path.is_dir():
        raise DirectoryError(
            "NOT_A_DIRECTORY",
            f"{path} is a symbolic link or not a directory",
            f"remove it, or set {HOME_VARIABLE} to the real directory",
        )
    # From here on the opened directory is judged, whatever happens to its name.
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        found = os.fstat(descriptor)
    finally:
        os.close(descriptor)
    if found.st_uid != os.geteuid():
        raise DirectoryError(
            "FOREIGN_OWNER",
            f"{path} belongs to user {found.st_uid}, not to user {os.geteuid()}",
            f"set {HOME_VARIABLE} to a directory of yours",
        )
    if found.st_mode & forbidden:
        raise DirectoryError(
            "NOT_PRIVATE",
            f"{path} is open to other users (mode {stat.S_IMODE(found.st_mode):04o})",
            f"chmod 700 '{path}'",
        )


@contextlib.contextmanager
def _locked(home: Home, service: str) -> Iterator[None]:
    # A directory with the pid in it goes with neither rm nor rmdir. A file would: then a second
    # process could make and lock a new one beside the first.
    path, pid_file = home.lock(service), home.pid_file(service)
    # Close-on-exec keeps the compilers that mlx starts from inheriting the lock.
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        _make_dir(path, forbidden=stat.S_IRWXG | stat.S_IRWXO)
        descriptor = os.open(path, flags)
    except OSError as error:
        raise DirectoryError(
            "LOCK_NOT_USABLE",
            f"the lock {path} cannot be opened: {error.strerror}",
            f"make '{home.run_dir}' writable, with room on its disk",
        ) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = _wait_for_pid(pid_file)
            raise AlreadyRunningError(
                f"ds4-{service} is already running as process {pid or 'unknown'} (lock {path})",
                f"stop it with `kill {pid or 'PID'}`, or set {HOME_VARIABLE} to run one beside it",
                pid,
            ) from None
        try:
            pid_file.write_text(f"{os.getpid()}\n")
        except OSError as error:
            raise DirectoryError(
                "LOCK_NOT_USABLE",
                f"the lock {path} cannot be written: {error.strerror}",
                "make room on its disk",
            ) from error
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                pid_file.unlink()
    finally:
        os.close(descriptor)


def _wait_for_pid(pid_file: Path) -> int:
    deadline = time.monotonic() + _PID_WAIT_S
    while True:
        with contextlib.suppress(OSError, ValueError):
            return int(pid_file.read_bytes())
        if time.monotonic() > deadline:
            return 0
        time.sleep(0.02)


@contextlib.contextmanager
def _private_tmp(parent: Path, service: str) -> Iterator[Path]:
    """A new 0700 directory, exported as TMPDIR to this process and its children.

    mlx's CPU compiler writes libraries there and loads them, so nobody else may write to it.
    """
    # The lock is held, so whatever an earlier process of this service left is stale.
    for left in parent.glob(f"{service}-*"):
        shutil.rmtree(left, ignore_errors=True)
    path = parent / f"{service}-{os.getpid()}"
    path.mkdir(mode=0o700)
    before = os.environ.get("TMPDIR")
    os.environ["TMPDIR"] = str(path)
    tempfile.tempdir = None  # tempfile caches its first answer
    try:
        yield path
    finally:
        tempfile.tempdir = None
        if before is None:
            os.environ.pop("TMPDIR", None)
        else:
            os.environ["TMPDIR"] = before
        shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def stop_signals() -> Iterator[asyncio.Event]:
    """An event that the first SIGTERM or SIGINT sets. The second one acts as it would without us.

    To be entered inside a running event loop, on the main thread.
    """
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    numbers = (signal.SIGTERM, signal.SIGINT)

    def first() -> None:
        stop.set()
        for number in numbers:
            loop.remove_signal_handler(number)

    for number in numbers:
        loop.add_signal_handler(number, first)
    try:
        yield stop
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)
