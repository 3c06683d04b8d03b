"""One process or many: the same training loop under `python` and under `torchrun`.

torchrun tells each process its place through RANK, WORLD_SIZE and LOCAL_RANK; gloo joins CPUs, nccl joins GPUs.
"""

from __future__ import annotations

import gc
import importlib
import os
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import distributed, nn


@dataclass(frozen=True)
class World:
    """This process among `size` processes; `device` is where its tensors live."""

    rank: int
    size: int
    device: torch.device

    @property
    def first(self) -> bool:
        """True in the one process that writes files and prints."""
        return self.rank == 0

    def wrap(self, model: nn.Module) -> nn.Module:
        """`model` itself, or a DistributedDataParallel around it that averages gradients over the processes."""
        if self.size == 1:
            return model
        from torch.nn.parallel import DistributedDataParallel

        ids = [self.device.index] if self.device.type == "cuda" else None
        return DistributedDataParallel(model, device_ids=ids)

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """Each flag, true in all processes when it is true in one of them."""
        if self.size == 1:
            return flags
        votes = torch.tensor(flags, dtype=torch.uint8, device=self.device)
        distributed.all_reduce(votes, op=distributed.ReduceOp.MAX)
        return tuple(bool(vote) for vote in votes.tolist())

    def wait(self) -> None:
        """Return when every process has come here."""
        if self.size > 1:
            distributed.barrier()


def _device(name: str, local_rank: int) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"device is {name!r}; expected cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device is {name!r}; expected cpu, cuda or cuda:N")
    if device.type == "cuda":
        count = torch.cuda.device_count()
        index = local_rank if device.index is None else device.index
        if index >= count:
            raise ValueError(f"device is {name!r}, but torch sees {count} CUDA devices")
        return torch.device("cuda", index)
    return device


@contextmanager
def connected(device: str) -> Iterator[World]:
    """Join the other processes of a torchrun, or be alone without one; leave them at the end, in order.

    At the end the processes wait for each other, unless one of them failed, and nothing of the group is left: no thread
    of it may be at work when the interpreter is taken down, which ends in an abort.

    Args:
        device: "cpu", "cuda" (the GPU of this process's local rank) or "cuda:N".

    Raises:
        ValueError: no such device, or the variables of torchrun are no numbers.

    >>> from gossamer.integrations.distributed import connected
    >>> with connected("cpu") as world:
    ...     world.rank, world.size, world.any(False, True)
    (0, 1, (False, True))
    """
    size = _number("WORLD_SIZE", 1)
    place = _device(device, _number("LOCAL_RANK", 0))
    if place.type == "cuda":
        torch.cuda.set_device(place)
    if size == 1:
        yield World(0, 1, place)
        return
    # Its functions take the group of the moment as their default when they are imported, which DistributedDataParallel
    # brings about, and would keep it, with its threads, until the process is gone.
    importlib.import_module("torch.distributed.nn")
    distributed.init_process_group("nccl" if place.type == "cuda" else "gloo")
    try:
        yield World(distributed.get_rank(), size, place)
        distributed.barrier()
    except BaseException as error:
        _forget(error)
        raise
    finally:
        gc.collect()  # a DistributedDataParallel holds the group and is part of cycles
        distributed.destroy_process_group()


def _forget(error: BaseException | None) -> None:
    """Empty the frames that an error came through: they hold what was wrapped, and that holds the group."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


def _number(variable: str, default: int) -> int:
    text = os.environ.get(variable, str(default))
    if not text.isdecimal():
        raise ValueError(f"the environment has {variable}={text!r}; expected a whole number, as torchrun sets it")
    return int(text)
