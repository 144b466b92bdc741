"""Where an installation keeps its files and sockets: one home, moved as a whole by DS4_HOME.

Pure standard library and quick to import, because every client loads it before it can say anything.
It only names paths: `lifecycle` creates and checks them. Called by every process and by
`ds4_client`.
"""

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from ds4_runtime.errors import AddressError

HOME_VARIABLE = "DS4_HOME"

# sockaddr_un.sun_path is 104 bytes on macOS and the BSDs, 108 on Linux; the last one is the NUL.
SOCKET_PATH_MAX_BYTES = 107 if sys.platform.startswith("linux") else 103


@dataclass(frozen=True, slots=True)
class Home:
    """The paths of one installation. None of them need exist."""

    path: Path

    @classmethod
    def find(cls, override: str | os.PathLike[str] | None = None) -> "Home":
        """The home given, else that of DS4_HOME, else the platform's usual place."""
        chosen = override or os.environ.get(HOME_VARIABLE)
        if chosen:
            try:
                os.fspath(chosen).encode()
            except UnicodeEncodeError as error:
                raise AddressError(
                    "HOME_NOT_UTF8",
                    f"the path of the home, {os.fspath(chosen)!a}, is not UTF-8",
                    f"set {HOME_VARIABLE} to one that is",
                ) from error
            return cls(Path(chosen).expanduser().absolute())
        try:
            return cls(_default_home())
        except RuntimeError as error:
            raise AddressError(
                "HOME_UNKNOWN",
                f"no home directory is known for this user: {error}",
                f"set {HOME_VARIABLE} to a directory of yours",
            ) from error

    @property
    def run_dir(self) -> Path:
        """Sockets and locks; 0700."""
        return self.path / "run"

    @property
    def tmp_dir(self) -> Path:
        """Holds one private temporary directory a running process; 0700."""
        return self.path / "tmp"

    @property
    def log_dir(self) -> Path:
        """Log files; 0700, for a log may name what people asked."""
        return self.path / "log"

    @property
    def journal_dir(self) -> Path:
        """What was promised to detached requests; 0700, for it holds what people asked."""
        return self.path / "journal"

    @property
    def models_dir(self) -> Path:
        """Models that ds4 itself put there."""
        return self.path / "models"

    @property
    def cache_dir(self) -> Path:
        """What may be deleted at any time and made again."""
        return self.path / "cache"

    @property
    def history_file(self) -> Path:
        """The lines typed into `ds4ctl chat`."""
        return self.path / "chat_history"

    def lock(self, service: str) -> Path:
        """The directory whose lock a running `service` ("daemon", "kvcache") holds for life."""
        return self.run_dir / service

    def pid_file(self, service: str) -> Path:
        """The pid of the process that holds that lock; one that was killed leaves it behind."""
        return self.lock(service) / "pid"

    def socket(self, service: str) -> Path:
        """The Unix socket of `service`. Raises AddressError when the path is too long for one."""
        path = self.run_dir / f"{service}.sock"
        length_bytes = len(os.fsencode(path))
        if length_bytes > SOCKET_PATH_MAX_BYTES:
            raise AddressError(
                "SOCKET_PATH_TOO_LONG",
                f"the socket path {path} has {length_bytes} bytes, "
                f"this platform allows {SOCKET_PATH_MAX_BYTES}",
                f"set {HOME_VARIABLE} to a shorter directory",
            )
        return path


def grpc_target(socket: Path) -> str:
    """The address of a Unix socket as gRPC reads it: a URI, with spaces and the like escaped."""
    return "unix:" + quote(os.fsencode(socket))


def _default_home() -> Path:
    # State, not data or cache: sockets, locks, logs and a store that only this machine can use.
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "ds4"
    state = Path(os.environ.get("XDG_STATE_HOME", ""))
    # The XDG specification has relative paths ignored.
    base = state if state.is_absolute() else Path.home() / ".local" / "state"
    return base / "ds4"
