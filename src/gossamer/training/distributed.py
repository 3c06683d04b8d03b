"""The same masks on every rank: copied from rank 0 at the start, compared after every event.

Between events nothing is sent. Ranks decide alone and agree because they read the same weights, the same reduced
gradients (never the local ones: mean |g_r| is not |mean g_r|) and the same counter-based random numbers.
"""

from __future__ import annotations

import weakref
import zlib
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.hooks import RemovableHandle

from gossamer.training.ever_active import pack
from gossamer.training.weights import Masked


def ranks() -> int:
    """Number of processes in the default group (1 without torch.distributed)."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def watch(network: nn.Module, use: Callable[[], None]) -> list[RemovableHandle]:
    """Call the method `use` in each forward of the network inside DistributedDataParallel; the hooks that do so.

    A network is often wrapped after the training method was made, and of a module nothing tells what wraps it. The hook
    comes before others: one that traces the channels would call the network again.
    """
    if not dist.is_available():
        return []
    return [network.register_forward_pre_hook(_Forward(weakref.WeakMethod(use)), prepend=True)]


class _Forward:
    """A forward hook; copies and pickles of the network carry an inert one."""

    def __init__(self, use: Callable[[], Callable[[], None] | None] | None = None) -> None:
        self.use = use

    def __call__(self, module: nn.Module, args: Any) -> None:
        # compiled code has no call of a wrapper in it: there it is seen at construction only
        if self.use is None or torch.compiler.is_compiling():
            return
        if DistributedDataParallel._get_active_ddp_module() is not None and (use := self.use()) is not None:
            use()

    def __reduce__(self) -> tuple[type, tuple]:
        return _Forward, ()

    def __deepcopy__(self, memo: dict) -> _Forward:
        return _Forward()


def broadcast(masks: list[Tensor]) -> None:
    """Copy the masks of rank 0 to all ranks, in place."""
    for mask in masks:
        sent = mask.contiguous().to(torch.uint8)
        dist.broadcast(sent, src=0)
        mask.copy_(sent.bool())


def digest(tensors: list[Masked]) -> int:
    """A 32-bit checksum of all masks."""
    value = 0
    for tensor in tensors:
        value = zlib.crc32(pack(tensor.mask).numpy().tobytes(), value)
    return value


def check_agreement(tensors: list[Masked], step: int) -> None:
    """Compare checksums over all ranks.

    Raises:
        RuntimeError: the masks differ, on every rank, naming the checksums.
    """
    device = tensors[0].mask.device
    mine = torch.tensor([digest(tensors)], dtype=torch.int64, device=device)
    every = [torch.zeros_like(mine) for _ in range(ranks())]
    dist.all_gather(every, mine)
    values = [int(value) for value in every]
    if len(set(values)) > 1:
        raise RuntimeError(
            f"masks differ between ranks after step {step} (checksums {values}): the ranks saw different weights or "
            "gradients; wrap the model in DistributedDataParallel, or pass distributed=False for independent runs"
        )
