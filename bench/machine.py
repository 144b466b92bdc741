"""What a figure needs beside it: the machine, the commit and the versions it was measured with."""

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_ROOT = Path(__file__).parents[1]


def describe(packages: tuple[str, ...] = ("numpy", "mlx")) -> list[str]:
    """Lines for the head of a results file."""
    versions = [f"{p} {v}" for p in packages if (v := _version(p))]
    return [
        f"commit {_commit()}",
        f"{_cpu()}, {os.cpu_count()} cores, {platform.system()} {platform.machine()}",
        f"Python {platform.python_version()}, {', '.join(versions)}",
    ]


def _commit() -> str:
    """The commit that is checked out, marked if files differ from it."""
    try:
        name = _git("rev-parse", "--short=12", "HEAD")
        return name + ("-dirty" if _git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=_ROOT, capture_output=True, check=True)
    return done.stdout.decode().strip()


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown processor"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
