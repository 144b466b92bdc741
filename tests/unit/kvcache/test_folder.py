"""The folder of the stores: made, tried and locked before anything is served."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from ds4_kvcache.errors import ConfigError
from ds4_kvcache.main import Hold, make_folder
from ds4_kvcache.settings import Settings
from ds4_runtime.address import Home
from ds4_runtime.settings import load

NOBODY = 65_534


@contextmanager
def user_without_rights(folder: Path) -> Iterator[None]:
    """Be the owner of a folder whom permissions bind; they do not bind root."""
    root = os.geteuid() == 0
    if root:
        os.chown(folder, NOBODY, -1)
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


@pytest.mark.parametrize("mode", [0o500, 0o300, 0o000])
def test_a_folder_that_cannot_be_written_is_refused(
    mode: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A service that could store or find nothing does not start, and says what to do."""
    with tempfile.TemporaryDirectory(prefix="ds4-", dir="/tmp") as name:
        folder = Path(name)
        monkeypatch.setenv("DS4_HOME", name)
        settings = load(Settings, ["--folder", str(folder / "store")])
        with user_without_rights(folder):
            made = make_folder(settings, Home(folder))
            assert list(made.iterdir()) == []
            made.chmod(mode)
            with pytest.raises(ConfigError) as error:
                make_folder(settings, Home(folder))
            made.chmod(0o700)
    assert error.value.reason == "FOLDER_NOT_USABLE"
    assert "Permission denied" in error.value.message and "--folder" in error.value.hint


def test_the_lock_follows_the_folder(tmp_path: Path) -> None:
    """A folder that was deleted and made again is locked again, unless another was quicker."""
    folder = tmp_path / "v1"
    folder.mkdir()
    held = Hold(folder)
    held.renew()
    folder.rmdir()
    held.renew()
    folder.mkdir()
    held.renew()
    with pytest.raises(ConfigError):
        Hold(folder)
    folder.rmdir()
    folder.mkdir()
    other = Hold(folder)
    with pytest.raises(ConfigError, match="another ds4-kvcache"):
        held.renew()
    other.end()
    held.end()
