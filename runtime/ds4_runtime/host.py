"""Facts of the machine and of this process, for status, admission and bench records.

It reads and never decides. Inside a container the container's memory limit counts, not the
machine's.
"""

import os
import platform
from dataclasses import dataclass
from pathlib import Path

import psutil

# cgroup v2; where another layout is mounted the file is absent and the machine's figures stand.
_CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class Host:
    """The machine. It does not change while a process runs."""

    system: str  # "Linux 6.8", "macOS 26.1"
    machine: str  # "arm64", "x86_64"
    cpu_count: int  # those this process may use
    memory_bytes: int


def host() -> Host:
    """What this machine is."""
    mac_version = platform.mac_ver()[0]
    system = f"macOS {mac_version}" if mac_version else f"{platform.system()} {platform.release()}"
    total = int(psutil.virtual_memory().total)
    limit = _cgroup_bytes("memory.max")
    return Host(
        system=system,
        machine=platform.machine(),
        cpu_count=_cpu_count(),
        memory_bytes=total if limit is None else min(total, limit),
    )


def available_memory_bytes() -> int:
    """What can be allocated now without swapping."""
    available = int(psutil.virtual_memory().available)
    limit, used = _cgroup_bytes("memory.max"), _cgroup_bytes("memory.current")
    if limit is None or used is None:
        return available
    return max(0, min(available, limit - used))


def resident_bytes() -> int:
    """The memory of this process that is in RAM."""
    return int(psutil.Process().memory_info().rss)


def _cpu_count() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cgroup_bytes(name: str) -> int | None:
    try:
        text = (_CGROUP / name).read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None  # "max" is no limit
