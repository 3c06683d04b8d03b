"""The same masks on every rank: copied from rank 0 at the start, compared after every event.

Between events nothing is sent. Ranks decide alone and agree because they read the same weights, the same reduced
gradients (never the local ones: mean |g_r| is not |mean g_r|) and the same counter-based random numbers.
"""

from __future__ import annotations

import zlib

import torch
import torch.distributed as dist
from torch import Tensor

from gossamer.training.ever_active import pack
from gossamer.training.weights import Masked


def ranks() -> int:
    """Number of processes in the default group (1 without torch.distributed)."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


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
