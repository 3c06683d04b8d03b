"""What a classifier needs of memory, and how many labels fit into what is free."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

GIB = 2**30
CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Layout:
    """Bytes of a label: `fan_in` connections, and its bias.

    >>> Layout(64, 2, 2, 0, 1, True).label  # bfloat16 and uint16, SGD
    260.0
    """

    fan_in: int
    index_bytes: int
    value_bytes: int
    states: int
    group: int
    bias: bool

    @property
    def label(self) -> float:
        connection = self.value_bytes + self.index_bytes / self.group + 4 * self.states
        return self.fan_in * connection + 4 * self.bias * (1 + self.states)


def require_room(layout: Layout, labels: int) -> None:
    """Refuse, with a number that would do, what is larger than the memory that is free (where that can be told)."""
    advice = "Take a smaller fan_in, dtype=torch.bfloat16, optimizer='sgd' or a larger group"
    require_bytes("labels", labels, layout.label, "labels", advice, f" with fan_in={layout.fan_in}")


def require_bytes(name: str, count: int, each: float, unit: str, advice: str, how: str = "") -> None:
    """Refuse `count` things of `each` bytes if they are more than what is free.

    Raises:
        MemoryError: naming the argument, and how many fit.
    """
    free = free_memory()
    if free is None or count * each <= free:
        return
    raise MemoryError(
        f"{name}={count:,}{how} need {count * each / GIB:.1f} GiB, {each:g} bytes each, and {free / GIB:.1f} GiB are "
        f"free: at most {int(free / each):,} {unit} fit. {advice}"
    )


def free_memory() -> int | None:
    """Bytes that a process can still take, of the machine and of its cgroup; None where neither is told."""
    found = [free for free in (_of_machine(), _of_cgroup()) if free is not None]
    return min(found, default=None)


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
