"""Room for large outputs: asked for in large pages, and kept for the next output of that size.

The C library maps every block above 32 MiB anew and unmaps it when it is freed, so each call pays for faulting in, and
clearing, all of its pages: for the 600 MB gradient of a layer of experts more than the product that writes them. Here
the memory of a tensor that is gone waits for the next of the same size, up to a limit. Nothing else is pooled.
"""

from __future__ import annotations

import mmap
import os
import sys
import weakref
from collections.abc import Callable
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
    try:
        if not hasattr(mmap, "MAP_PRIVATE"):
            return mmap.mmap(-1, size)
        memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except (OSError, OverflowError) as error:  # what torch says where it has no memory
        raise RuntimeError(f"not enough memory: tried to map {size} bytes for an output ({error})") from None
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return memory


def _leased(size: int, whole: int) -> tuple[Tensor, mmap.mmap, bool]:
    """The first bytes of a block that comes back when no tensor uses it, the block, and whether it is new."""
    block = KEPT.take(whole)
    new = block is None
    if block is None:
        block = _map(whole)
    lease = np.frombuffer(block, dtype=np.uint8, count=size)  # lives as long as the storage, and tells us its end
    weakref.finalize(lease, KEPT.give, block).atexit = False
    return torch.from_numpy(lease), block, new


def empty(shape: tuple[int, ...], dtype: torch.dtype, least: int = NEW_MEMORY_BYTES) -> Tensor:
    """torch.empty, from kept memory where it has `least` bytes or more.

    It is no view of anything: autograd refuses in-place operators on a view that a custom function returns.
    """
    size = prod(shape) * dtype.itemsize
    if size < least:
        return torch.empty(shape, dtype=dtype, device="cpu")
    storage = _leased(size, -(-size // PAGE) * PAGE)[0].untyped_storage()
    return torch.empty(0, dtype=dtype, device="cpu").set_(storage).resize_(shape)


def with_slack(count: int, dtype: torch.dtype) -> tuple[Tensor, Callable[[int], None]] | None:
    """Room for `count` elements of which few may be used, and a function that makes all from a given one on zero.

    Pages that are not used cost nothing: new ones are zero by themselves, and of a kept block they are handed back,
    so that it holds as much as was last used. None where there is less than a few pages: clear that.
    """
    size = count * dtype.itemsize
    if size < 2 * PAGE:
        return None
    # In steps of an eighth to a quarter, so that a capacity which varies a little finds the block of the last one.
    step = max(PAGE, 1 << size.bit_length() - 3)
    whole = -(-size // step) * step
    memory, block, new = _leased(size, whole)

    def clear(used: int) -> None:
        if new:
            return
        edge = min(-(-used * dtype.itemsize // PAGE) * PAGE, whole)
        if sys.platform != "linux":  # elsewhere this advice need not make zeros
            edge = whole
        memory[used * dtype.itemsize : edge].zero_()
        if edge < whole:
            block.madvise(mmap.MADV_DONTNEED, edge, whole - edge)

    return memory.view(dtype), clear
