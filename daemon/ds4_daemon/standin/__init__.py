"""The stand-in model: the embedded model's geometry with random weights. What it writes is noise.

It lets every path run and be compared without trained weights: same network, same formats, same
tokenizer code. `make` writes it as a released checkpoint and as GGUF, with the same numbers up to
their quantization. Owns where those files lie and that they are whole; called by tests and benches,
and as `python -m ds4_daemon.standin`.
"""

import contextlib
import json
import shutil
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from ds4_daemon.errors import ConfigError
from ds4_daemon.standin.gguf_writer import write_gguf
from ds4_daemon.standin.release import write_release

__all__ = ["TOKENIZER", "StandIn", "make"]

TOKENIZER = Path(__file__).parent / "tokenizer.json"

# Raise it whenever the written files change, or old ones in caches stay in use.
_VERSION = 1
_MARK = "stand-in.json"
_SCRATCH = ".stand-in-"
# Making takes seconds: what is older was left by a process that was killed.
_STALE_S = 600


class StandIn(NamedTuple):
    """The same random model twice: a released checkpoint's folder and a GGUF file."""

    release: Path
    gguf: Path


def make(folder: Path, seed: int = 0) -> StandIn:
    """Write the stand-in into `folder`, or find it there; takes seconds.

    The folder appears whole or not at all, whoever is killed and however many make it at once.
    Raises ConfigError if `folder` holds something else or cannot be written.
    """
    found = StandIn(folder / "release", folder / "stand-in.gguf")
    if _is_whole(folder, seed):
        return found
    present = _mark_of(folder)
    if present is None and folder.exists() and not _is_empty_folder(folder):
        raise ConfigError(
            "STAND_IN_UNWRITABLE", f"{folder} holds something else.", "name an empty folder"
        )
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _sweep(folder.parent)
        with tempfile.TemporaryDirectory(prefix=_SCRATCH, dir=folder.parent) as scratch:
            whole = Path(scratch) / "new"
            (whole / "release").mkdir(parents=True)
            write_release(whole / "release", TOKENIZER, seed)
            write_gguf(whole / "stand-in.gguf", TOKENIZER, seed)
            mark = {"version": _VERSION, "seed": seed, "sizes_bytes": _sizes(whole)}
            (whole / _MARK).write_text(json.dumps(mark))
            if present is not None and _mark_of(folder) == present and not _is_whole(folder, seed):
                folder.rename(Path(scratch) / "old")  # ours: another version, seed, or damaged
            whole.rename(folder)
    except OSError as error:
        if not _is_whole(folder, seed):  # else another process was quicker
            raise ConfigError(
                "STAND_IN_UNWRITABLE",
                f"The stand-in model cannot be written to {folder}: {error.strerror}.",
                "name a model with --model, or make room there",
            ) from error
    return found


def _sweep(parent: Path) -> None:
    for scratch in parent.glob(f"{_SCRATCH}*"):
        with contextlib.suppress(FileNotFoundError):  # its maker is done with it
            if time.time() - scratch.stat().st_mtime > _STALE_S:
                shutil.rmtree(scratch, ignore_errors=True)


def _is_whole(folder: Path, seed: int) -> bool:
    mark = _mark_of(folder)
    wanted = {"version": _VERSION, "seed": seed, "sizes_bytes": _sizes(folder)}
    return mark is not None and mark == wanted


def _sizes(folder: Path) -> dict[str, int]:
    """The bytes of each file of the model in `folder`, by its path there."""
    files = (*folder.glob("release/*"), *folder.glob("*.gguf"))
    return {str(path.relative_to(folder)): path.stat().st_size for path in sorted(files)}


def _is_empty_folder(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


def _mark_of(folder: Path) -> object:
    """What a finished folder says about itself, None if it is not one."""
    try:
        return json.loads((folder / _MARK).read_bytes())
    except (OSError, ValueError):
        return None
