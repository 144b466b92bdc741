"""ds4_runtime.lifecycle: directories, the lock, the temporary folder, signals."""

import os
import signal
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from ds4_runtime.address import Home
from ds4_runtime.errors import AlreadyRunningError, DirectoryError
from ds4_runtime.lifecycle import claim

HOLDER = """
import sys
from ds4_runtime.address import Home
from ds4_runtime.lifecycle import claim
with claim(Home.find(sys.argv[1]), "daemon"):
    print("held", flush=True)
    sys.stdin.read()
"""

STOPPER = """
import asyncio, sys
from ds4_runtime.lifecycle import stop_signals
async def main():
    with stop_signals() as stop:
        print("ready", flush=True)
        await stop.wait()
        print("stopping", flush=True)
        if len(sys.argv) > 1:
            await asyncio.sleep(60)
asyncio.run(main())
"""


def start(code: str, *arguments: str) -> subprocess.Popen[str]:
    """A Python process that runs `code`, after it has said its first line."""
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    process.stdout.readline()
    return process


def mode(path: Path) -> int:
    """The permission bits of `path`."""
    return stat.S_IMODE(path.stat().st_mode)


def test_a_claim_makes_private_directories(home: Path) -> None:
    """Every directory of a new home is 0700, whatever the umask."""
    made = Home(home / "deep" / "home")
    umask = os.umask(0)
    try:
        with claim(made, "daemon") as tenancy:
            for path in (made.path, made.run_dir, made.tmp_dir, made.log_dir, tenancy.tmp_dir):
                assert mode(path) == 0o700
            assert mode(made.lock("daemon")) == 0o700
    finally:
        os.umask(umask)


def test_the_temporary_folder_is_exported_and_removed(home: Path) -> None:
    """TMPDIR and tempfile name the private folder while the claim lasts, and no longer."""
    before = os.environ.get("TMPDIR"), tempfile.gettempdir()
    with claim(Home(home), "daemon") as tenancy:
        assert os.environ["TMPDIR"] == tempfile.gettempdir() == str(tenancy.tmp_dir)
        (tenancy.tmp_dir / "kernel.so").write_bytes(b"x")
    assert not tenancy.tmp_dir.exists()
    assert (os.environ.get("TMPDIR"), tempfile.gettempdir()) == before


def test_a_second_claim_is_refused_with_the_first_ones_pid(home: Path) -> None:
    """A second process is told who holds the lock; when that one is gone it may have it."""
    place = Home(home)
    holder = start(HOLDER, str(home))
    try:
        with pytest.raises(AlreadyRunningError) as caught, claim(place, "daemon"):
            pass
        assert caught.value.pid == holder.pid
        assert str(holder.pid) in caught.value.message
        with claim(place, "kvcache"):
            pass  # another service has its own lock
    finally:
        holder.communicate()
    with claim(place, "daemon"):
        assert int(place.pid_file("daemon").read_text()) == os.getpid()


def test_removing_what_is_in_the_run_directory_frees_no_lock(home: Path) -> None:
    """Neither rm nor rmdir takes the lock away, and what the holder uses stays whole."""
    place = Home(home)
    holder = start(HOLDER, str(home))
    try:
        subprocess.run("rm -f run/*; rmdir run/*", shell=True, cwd=home, capture_output=True)
        with pytest.raises(AlreadyRunningError) as caught, claim(place, "daemon"):
            pass
        assert caught.value.pid == holder.pid
        place.pid_file("daemon").unlink()
        with pytest.raises(AlreadyRunningError), claim(place, "daemon"):
            pass
        assert (place.tmp_dir / f"daemon-{holder.pid}").is_dir()
    finally:
        holder.communicate()


def test_a_full_disk_is_a_named_error(home: Path) -> None:
    """Where the pid cannot be written the claim says so, and leaves the lock free."""
    code = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))\n" + HOLDER
    told = subprocess.run([sys.executable, "-c", code, str(home)], capture_output=True, text=True)
    assert "ds4_runtime.errors.DirectoryError" in told.stderr
    assert "cannot be written" in told.stderr
    with claim(Home(home), "daemon"):
        pass


def test_a_killed_holder_leaves_nothing_in_the_way(home: Path) -> None:
    """After SIGKILL the lock is free, and the next process removes the folder left behind."""
    holder = start(HOLDER, str(home))
    left = Home(home).tmp_dir / f"daemon-{holder.pid}"
    holder.kill()
    holder.communicate()
    other = Home(home).tmp_dir / "kvcache-1"
    other.mkdir()
    assert left.is_dir()
    with claim(Home(home), "daemon"):
        assert not left.exists()
        assert other.exists()  # that service may be alive


def test_a_symbolic_link_is_refused(home: Path) -> None:
    """Neither the home nor the run directory may be a link that leads elsewhere."""
    (home / "real").mkdir(mode=0o700)
    (home / "link").symlink_to(home / "real")
    (home / "home").mkdir(mode=0o700)
    (home / "home" / "run").symlink_to(home / "real")
    for name in ("link", "home"):
        with (
            pytest.raises(DirectoryError, match="symbolic link"),
            claim(Home(home / name), "daemon"),
        ):
            pass
    assert list((home / "real").iterdir()) == []


def test_a_run_directory_open_to_others_is_refused(home: Path) -> None:
    """A directory that others can enter is not silently used, and the hint repairs it."""
    (home / "run").mkdir(mode=0o755)
    (home / "run").chmod(0o755)
    with pytest.raises(DirectoryError) as caught, claim(Home(home), "daemon"):
        pass
    assert caught.value.reason == "NOT_PRIVATE"
    subprocess.run(caught.value.hint, shell=True, check=True)
    with claim(Home(home), "daemon"):
        pass


def test_a_home_that_others_can_write_is_refused(home: Path) -> None:
    """Others must not be able to swap what is in a home; they may see that it exists."""
    home.chmod(0o755)
    with claim(Home(home), "daemon"):
        pass
    home.chmod(0o770)
    with pytest.raises(DirectoryError), claim(Home(home), "daemon"):
        pass


def test_a_foreign_owner_is_refused(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory of another user is refused by name."""
    (home / "run").mkdir(mode=0o700)
    uid = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: uid + 1)
    with pytest.raises(DirectoryError) as caught, claim(Home(home), "daemon"):
        pass
    assert caught.value.reason == "FOREIGN_OWNER"


def test_a_home_that_cannot_be_made_is_a_named_error(home: Path) -> None:
    """A file in the way is told with its path and a hint."""
    (home / "file").write_text("")
    with pytest.raises(DirectoryError) as caught, claim(Home(home / "file" / "home"), "daemon"):
        pass
    assert caught.value.reason == "HOME_NOT_USABLE"
    assert "DS4_HOME" in caught.value.hint


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_asks_to_stop(number: signal.Signals) -> None:
    """SIGTERM and SIGINT set the event and the process leaves in its own time with 0."""
    process = start(STOPPER)
    process.send_signal(number)
    out, _ = process.communicate(timeout=10)
    assert (out, process.returncode) == ("stopping\n", 0)


def test_the_second_signal_ends_it(home: Path) -> None:
    """A process that drains too long for somebody is ended by a second SIGTERM."""
    process = start(STOPPER, "slowly")
    process.send_signal(signal.SIGTERM)
    assert process.stdout is not None
    assert process.stdout.readline() == "stopping\n"
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=10)
    assert process.returncode == -signal.SIGTERM
