"""POSIX shared memory objects: named memory that two processes of one user map.

`multiprocessing.shared_memory` would do before Python 3.13 too, but for a tracker process that
unlinks what others still name; so the two system calls below it are used as they are. An object
lives until its name is unlinked and its last map is gone.
"""

import mmap
import os
import re
import secrets

# macOS allows 31 bytes.
_NAME = re.compile(r"/ds4-[0-9a-f]{16}")


def create(size_bytes: int) -> tuple[str, mmap.mmap]:
    """A new object of zeros that only this user can open: its name and its memory. Raises OSError.

    Pages are taken when they are first touched.
    """
    name = f"/ds4-{secrets.token_hex(8)}"
    descriptor = _open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL)
    try:
        os.ftruncate(descriptor, size_bytes)
        return name, mmap.mmap(descriptor, size_bytes)
    except BaseException:
        unlink(name)
        raise
    finally:
        os.close(descriptor)


def attach(name: str) -> mmap.mmap:
    """The memory of an object that this user created.

    Raises ValueError for what is no name of ours or is empty, PermissionError for another user's,
    OSError for what is not there.
    """
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} is no name of shared memory of ds4")
    descriptor = _open(name, os.O_RDWR)
    try:
        found = os.fstat(descriptor)
        if found.st_uid != os.geteuid():
            raise PermissionError(f"{name} belongs to another user")
        return mmap.mmap(descriptor, found.st_size)
    finally:
        os.close(descriptor)


def unlink(name: str) -> None:
    """Take the name away; who has the memory mapped keeps it. Raises OSError."""
    import _posixshmem  # type: ignore[import-not-found]  # without stubs

    _posixshmem.shm_unlink(name)


def _open(name: str, flags: int) -> int:
    import _posixshmem  # as above

    return int(_posixshmem.shm_open(name, flags, mode=0o600))
