"""Fail when proto/gen is not what proto/ds4 gives: `python tools/check_generated.py`.

Runs proto/generate.py into a temporary folder and compares every file byte by byte, in both
directions. Needs the very versions of the generators that pyproject.toml names. `make check`
calls it.
"""

import runpy
import sys
import tempfile
from pathlib import Path

PROTO = Path(__file__).resolve().parent.parent / "proto"


def stale(committed: Path, fresh: Path) -> list[str]:
    """Names of the files that differ, or are in one of the folders only."""

    def contents(folder: Path) -> dict[str, bytes]:
        return {
            path.relative_to(folder).as_posix(): path.read_bytes()
            for path in folder.rglob("*")
            if path.is_file() and "__pycache__" not in path.parts
        }

    ours, theirs = contents(committed), contents(fresh)
    return sorted(name for name in ours | theirs if ours.get(name) != theirs.get(name))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        runpy.run_path(str(PROTO / "generate.py"))["generate"](Path(folder))
        found = stale(PROTO / "gen", Path(folder))
    for file_name in found:
        print(f"proto/gen/{file_name} is not fresh; type: make gen")
    if not found:
        print("generated code: fresh")
    sys.exit(bool(found))
