"""ds4_runtime.address: one home directory, and every path in it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from ds4_runtime.address import SOCKET_PATH_MAX_BYTES, Home, grpc_target
from ds4_runtime.errors import AddressError


def test_the_variable_moves_every_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """DS4_HOME moves every file and socket of an installation."""
    monkeypatch.setenv("DS4_HOME", str(tmp_path))
    home = Home.find()
    paths = [
        home.run_dir, home.tmp_dir, home.log_dir, home.models_dir, home.cache_dir,
        home.history_file, home.lock("daemon"), home.socket("daemon"),
    ]  # fmt: skip
    assert all(path.is_relative_to(tmp_path) for path in paths)
    assert len(set(paths)) == len(paths)


def test_a_home_given_wins_over_the_variable(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """An explicit home is used whatever DS4_HOME says."""
    monkeypatch.setenv("DS4_HOME", "/elsewhere")
    assert Home.find(tmp_path).path == tmp_path


def test_an_empty_variable_is_as_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An empty DS4_HOME means the platform's usual place, in the state directory of the user."""
    monkeypatch.setenv("DS4_HOME", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    assert Home.find().path.is_relative_to(tmp_path)
    assert Home.find().path.name == "ds4"


@pytest.mark.parametrize(
    ("platform", "state", "expected"),
    [
        ("linux", None, ".local/state/ds4"),
        ("linux", "/somewhere/state", "/somewhere/state/ds4"),
        ("linux", "relative/is/ignored", ".local/state/ds4"),
        ("darwin", "/somewhere/state", "Library/Application Support/ds4"),
    ],
)
def test_the_usual_place_follows_the_platform(
    platform: str, state: str | None, expected: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """macOS keeps it in Application Support, others where XDG says that state lives."""
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.delenv("DS4_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    if state is None:
        monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    else:
        monkeypatch.setenv("XDG_STATE_HOME", state)
    assert Home.find().path == tmp_path / expected


def test_a_relative_home_is_made_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A relative home does not move when the process changes its directory."""
    monkeypatch.chdir(tmp_path)
    home = Home.find("here")
    monkeypatch.chdir("/")
    assert home.path == tmp_path / "here"


def test_a_home_that_is_not_utf8_is_refused_with_a_hint(monkeypatch: pytest.MonkeyPatch) -> None:
    """gRPC and the log know no other text, so it is said before either sees it."""
    monkeypatch.setenv("DS4_HOME", os.fsdecode(b"/tmp/\xff"))
    with pytest.raises(AddressError) as caught:
        Home.find()
    assert caught.value.reason == "HOME_NOT_UTF8"
    assert "DS4_HOME" in caught.value.hint


def test_a_socket_path_too_long_is_refused_with_a_hint() -> None:
    """The longest path the platform can hold passes, one byte more is a named error."""
    fill = SOCKET_PATH_MAX_BYTES - len("//run/daemon.sock")
    assert len(os.fsencode(Home(Path("/" + "x" * fill)).socket("daemon"))) == SOCKET_PATH_MAX_BYTES
    with pytest.raises(AddressError) as caught:
        Home(Path("/" + "x" * (fill + 1))).socket("daemon")
    assert caught.value.reason == "SOCKET_PATH_TOO_LONG"
    assert "DS4_HOME" in caught.value.hint


def test_a_target_escapes_what_a_uri_cannot_hold() -> None:
    """A home with a space, a percent sign or a letter beyond ASCII still makes a valid target."""
    assert grpc_target(Path("/a b/50%/é.sock")) == "unix:/a%20b/50%25/%C3%A9.sock"


def test_address_needs_the_standard_library_alone() -> None:
    """Importing it loads nothing but the standard library and itself."""
    code = (
        "import sys; before = set(sys.modules); import ds4_runtime.address\n"
        "new = {name.split('.')[0] for name in set(sys.modules) - before}\n"
        "print(sorted(new - set(sys.stdlib_module_names)))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "['ds4_runtime']"
