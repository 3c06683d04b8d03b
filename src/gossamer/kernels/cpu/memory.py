"""Room for large outputs: asked for in large pages, and kept for the next output of that size.

The C library maps every block above 32 MiB anew and unmaps it when it is freed, so each call pays for faulting in, and
clearing, all of its pages: for the 600 MB gradient of a layer of experts more than the product that writes them. Here
the memory of a tensor that is gone waits for the next of the same size, up to a limit. Nothing else is pooled.
"""

from __future__ import annotations

import mmap
import os
import weakref
from math import prod
from threading import RLock

import numpy as np
import torch
from torch import Tensor

NEW_MEMORY_BYTES = 32 << 20
"""From here on malloc hands out new memory of the operating system, always (glibc's largest mmap threshold)."""

PAGE = 2 << 20


def _limit() -> int:
    """Bytes to keep at most: GOSSAMER_KEEP_BYTES, or 2 GiB, or an eighth of the machine's memory if that is less."""
    given = os.environ.get("GOSSAMER_KEEP_BYTES")
    if given is not None:
        if not given.isdecimal():
            raise ValueError(f"GOSSAMER_KEEP_BYTES must be a number of bytes, 0 for none, got {given!r}")
        return int(given)
    try:
        machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # no such call on this system
        return 0
    return min(2 << 30, machine // 8)


class Kept:
    """Mapped blocks that no tensor uses, oldest first."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.blocks: list[mmap.mmap] = []
        self._lock = RLock()  # a tensor may be freed, and its block come back, while this very code runs

    def take(self, size: int) -> mmap.mmap | None:
        """A block of exactly this size, the latest returned."""
        with self._lock:
            for i in reversed(range(len(self.blocks))):
                if len(self.blocks[i]) == size:
                    return self.blocks.pop(i)
        return None

    def give(self, block: mmap.mmap) -> None:
        """Keep a block; the oldest ones leave when that is too much."""
        with self._lock:
            self.blocks.append(block)
            while sum(map(len, self.blocks)) > self.limit:
                self.blocks.pop(0)

    def release(self) -> None:
        """Return everything to the operating system."""
        with self._lock:
            self.blocks.clear()


KEPT = Kept(_limit())


def _map(size: int) -> mmap.mmap:
    """New memory, zero, private to this process (Python's default is shared with children), in large pages."""
    if not hasattr(mmap, "MAP_PRIVATE"):
        return mmap.mmap(-1, size)
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return memory


def empty(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """torch.empty, from kept memory where it is large."""
    size = prod(shape) * dtype.itemsize
    if size < NEW_MEMORY_BYTES:
        return torch.empty(shape, dtype=dtype)
    whole = -(-size // PAGE) * PAGE
    block = KEPT.take(whole)
    if block is None:
        block = _map(whole)
    lease = np.frombuffer(block, dtype=np.uint8)  # lives as long as the tensor's storage, and is what tells us its end
    weakref.finalize(lease, KEPT.give, block).atexit = False
    return torch.from_numpy(lease)[:size].view(dtype).view(shape)


def untouched(count: int, dtype: torch.dtype) -> Tensor | None:
    """Zeros [count] that cost nothing until they are touched, or None where there is less than malloc would map."""
    size = count * dtype.itemsize
    return None if size < NEW_MEMORY_BYTES else torch.frombuffer(_map(size), dtype=dtype)
