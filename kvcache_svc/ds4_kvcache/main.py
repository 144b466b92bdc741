"""ds4-kvcache, from top to bottom: what it is made of and in which order that comes to life.

    settings -> lock and private folders -> budget -> stores -> socket -> SERVING
    -> ... SIGTERM -> no new calls -> everything on disk -> gone

It outlives the daemon's crashes and the daemon its own. Exit codes: 0 stopped, 1 failed, 2 unknown
flag, 78 configuration that cannot be used.
"""

import asyncio
import errno
import fcntl
import os
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import structlog
from ds4_runtime import log
from ds4_runtime.address import Home
from ds4_runtime.errors import SetupError
from ds4_runtime.lifecycle import Tenancy, claim, stop_signals
from ds4_runtime.settings import load

from ds4_kvcache.errors import ConfigError, KvError
from ds4_kvcache.settings import Settings

if TYPE_CHECKING:
    from ds4_kvcache.house import House
    from ds4_kvcache.rpc.slab import Slabs

EXIT_FAILED, EXIT_CONFIG = 1, 78
# How long running calls may go on, and how long the last batch may take to be written.
_GRACE_S, _FLUSH_S = 1.0, 5.0
# Between two rounds of what nobody waits for.
_TICK_S = 10.0

_log = structlog.get_logger()


def main(arguments: list[str] | None = None) -> int:
    """The command `ds4-kvcache`."""
    try:
        settings = load(Settings, arguments)
        configure_log(settings)
        with claim(Home.find(), "kvcache") as tenancy:
            return asyncio.run(serve(settings, tenancy))
    except (KvError, SetupError) as error:
        print(f"ds4-kvcache: {error.message} [{error.reason}]", file=sys.stderr)
        if error.hint:
            print(f"  {error.hint}", file=sys.stderr)
        return EXIT_CONFIG if isinstance(error, ConfigError | SetupError) else EXIT_FAILED


def configure_log(settings: Settings) -> None:
    """Logs where the settings say. Raises ConfigError."""
    try:
        log.configure("ds4-kvcache", level=settings.log_level, file=settings.log_file)
    except OSError as error:
        raise ConfigError(
            "LOG_FILE_NOT_USABLE",
            f"the log file {settings.log_file} cannot be written: {error.strerror}",
            "name another with --log-file, or leave it out",
        ) from error


async def serve(settings: Settings, tenancy: Tenancy) -> int:
    """Serve until a signal or an Admin.Drain that stops; the exit code."""
    from ds4_runtime.server import Server

    from ds4_kvcache.budget import Budget
    from ds4_kvcache.cache import Cache
    from ds4_kvcache.house import House
    from ds4_kvcache.rpc.admin import Admin
    from ds4_kvcache.rpc.kv_cache import KvCache
    from ds4_kvcache.rpc.services import add_services
    from ds4_kvcache.rpc.slab import Slabs
    from ds4_kvcache.rpc.status_codes import STATUS_CODES
    from ds4_kvcache.rpc.workers import Workers

    # The disk, and all that is on it.
    folder = make_folder(settings, tenancy.home)
    held = Hold(folder)
    budget = Budget.of(
        folder,
        settings.budget_bytes,
        settings.free_floor_bytes,
        settings.daily_write_budget_bytes,
    )
    cache = Cache(budget)
    await asyncio.to_thread(cache.open_all)

    # The services.
    workers = Workers()
    server = Server(tenancy, STATUS_CODES)
    stopped = asyncio.Event()
    slabs = Slabs()
    kv_cache = KvCache(cache, workers, slabs, settings.min_tokens)
    add_services(server, kv_cache, Admin(cache, workers, str(tenancy.home.path), stopped.set))
    await server.start()
    await server.set_serving(True)
    _log.info("cache served", socket=str(server.socket), folder=str(folder))

    with stop_signals() as signalled:
        housekeeping = asyncio.create_task(keep_house(House(cache), slabs, held, stopped.set))
        ends = [asyncio.create_task(event.wait()) for event in (signalled, stopped)]
        try:
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (housekeeping, *ends):
                task.cancel()
            await server.stop(_GRACE_S)
            workers.close()
            await asyncio.to_thread(cache.close, _FLUSH_S)
            held.end()
    _log.info("cache closed")
    return 0


async def keep_house(
    house: "House", slabs: "Slabs", held: "Hold", stop: Callable[[], None]
) -> None:
    """Do what nobody waits for, until cancelled."""
    while True:
        await asyncio.sleep(_TICK_S)
        slabs.forget_idle()
        try:
            held.renew()
            await asyncio.to_thread(house.tick)
        except ConfigError as error:
            _log.error("folder taken by another service", why=error.message)
            stop()
        except Exception as error:  # noqa: BLE001 (logged; the next round is to come all the same)
            _log.error("housekeeping failed", exc_info=error)


class Hold:
    """The lock on a folder against a service of another home, from now to `end`.

    Raises ConfigError. LMDB's file in two processes of ours would be two truths.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._descriptor = self._lock()

    def _lock(self) -> int:
        descriptor = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            raise ConfigError(
                "FOLDER_IN_USE",
                f"another ds4-kvcache, of another home, keeps its stores in {self._folder}",
                "stop it, or set another folder with --folder",
            ) from error
        return descriptor

    def renew(self) -> None:
        """Lock the folder of that name where the one that is locked was deleted or moved."""
        if not self._folder.exists():
            return  # nobody has it, until a store is made in it again
        if not os.path.samestat(self._folder.stat(), os.fstat(self._descriptor)):
            fresh = self._lock()
            self.end()
            self._descriptor = fresh

    def end(self) -> None:
        os.close(self._descriptor)


def make_folder(settings: Settings, home: Home) -> Path:
    """The folder of all stores, for this user alone. Raises ConfigError.

    Its name ends in .noindex: Spotlight does not read what is in such a folder.
    """
    folder = (settings.folder or home.cache_dir / "kv.noindex").expanduser().absolute() / "v1"
    try:
        for path in (folder.parent.parent, folder.parent, folder):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.parent.stat()
        if found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o077:
            raise ConfigError(
                "FOLDER_NOT_PRIVATE",
                f"{folder.parent} is open to other users, and prompts can be read in it",
                f"chmod 700 '{folder.parent}', or set another with --folder",
            )
        _try_to_write(folder)
    except OSError as error:
        raise ConfigError(
            "FOLDER_NOT_USABLE",
            f"the folder {folder} cannot be used: {error.strerror} ({error.filename})",
            "make it a folder that you can write, or set another with --folder",
        ) from error
    return folder


def _try_to_write(folder: Path) -> None:
    """Raise OSError where nothing can be stored: it would be found by nobody but the log."""
    probe = folder / "probe"
    try:
        probe.touch(mode=0o600)
        probe.unlink()
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):  # a full disk may have room later
            raise
    list(folder.iterdir())


if __name__ == "__main__":
    sys.exit(main())
