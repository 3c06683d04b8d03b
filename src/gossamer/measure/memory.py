"""What memory is free, and the refusal of what needs more than that."""

from __future__ import annotations

import os
from pathlib import Path

GIB = 2**30
CGROUP = Path("/sys/fs/cgroup")


def free_memory() -> int | None:
    """Bytes that a process can still take, of the machine and of its cgroup; None where neither is told."""
    found = [free for free in (_of_machine(), _of_cgroup()) if free is not None]
    return min(found, default=None)


def require_memory(said: str, count: int, each: float, advice: str) -> None:
    """Refuse `count` things of `each` bytes if they are more than what is free.

    Args:
        said: names the things by the argument that asks for them, `features=4,294,967,296 with width=512`.
        advice: what to do.

    Raises:
        MemoryError: with the bytes needed, those that are free, and how many things fit.
    """
    free = free_memory()
    if free is None or not each or count * each <= free:
        return
    raise MemoryError(
        f"{said} need {count * each / GIB:,.1f} GiB, {each:,.0f} bytes each, and {free / GIB:.1f} GiB are free: "
        f"at most {int(free / each):,} fit. {advice}"
    )


def _of_machine() -> int | None:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
        return None
    except (OSError, ValueError, IndexError):
        pass
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")  # macOS tells no more
    except (OSError, ValueError, AttributeError):
        return None


def _of_cgroup() -> int | None:
    try:
        most = (CGROUP / "memory.max").read_text().strip()
        if most == "max":
            return None
        used = int((CGROUP / "memory.current").read_text())
        cached = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines()).get("file", "0")
        return max(int(most) - used + int(cached), 0)  # what files hold can be given back
    except (OSError, ValueError):
        return None
