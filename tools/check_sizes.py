"""Fail when a file has grown past what is read in one sitting: `python tools/check_sizes.py`.

Owns the limit and what it holds for: every text file of code that git knows or would add, written
by hand. Generated code is not read, and data is not code. `make check` calls it.
"""

import subprocess
import sys
from pathlib import Path

LIMIT_LINES = 400  # about eight screens: past it, a file has two subjects
SUFFIXES = {".cu", ".h", ".html", ".metal", ".proto", ".py", ".pyi", ".sh", ".toml", ".yaml"}
GENERATED = "proto/gen/"


def too_long(root: Path) -> list[str]:
    """One line for each file over the limit."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=root,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    findings = []
    for name in sorted(filter(None, listed.split("\0"))):
        path = root / name
        if path.suffix not in SUFFIXES or name.startswith(GENERATED) or not path.is_file():
            continue
        lines = path.read_text(encoding="utf-8").count("\n")
        if lines > LIMIT_LINES:
            findings.append(f"{name}: {lines} lines, {LIMIT_LINES} are the limit; split it")
    return findings


if __name__ == "__main__":
    found = too_long(Path(__file__).resolve().parent.parent)
    print("\n".join(found) or "file sizes: fine")
    sys.exit(bool(found))
