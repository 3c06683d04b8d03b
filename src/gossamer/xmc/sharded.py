"""A classifier whose labels are divided among processes: each has a share, all see the same batch.

    torchrun --nproc-per-node 2 train.py        # in it, after torch.distributed.init_process_group:
    head = ShardedHead(768, 3_000_000, fan_in=64)
    grad_x, loss = head.step(x, labels, lr)     # x and labels are the same in every process

A step needs one sum over processes, of grad_x; a search one exchange of the k best of each. What is saved can be opened
by any number of processes, also by one.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn

from gossamer.ops.fan_in.topk import fan_in_topk, merge_topk
from gossamer.xmc import saved, store
from gossamer.xmc.data.csr import Csr
from gossamer.xmc.head import FusedHead


def share_of(labels: int, rank: int, size: int, group: int = 1) -> tuple[int, int]:
    """The labels [begin, end) of a process: as many for each as there can be, in whole groups.

    >>> [share_of(100, rank, 3, 16) for rank in range(3)]
    [(0, 32), (32, 64), (64, 100)]
    """
    groups = -(-labels // group)
    begin, end = (groups * at // size * group for at in (rank, rank + 1))
    return begin, min(end, labels)


class ShardedHead(nn.Module):
    """`FusedHead` with this process's share of the labels, which are numbered as in the whole.

    In float32 weights and states are those that one process would have, bit for bit, as long as x is; grad_x, a sum
    over processes, is equal but for rounding. In bfloat16 other random bits round the weights.

    Args:
        width, labels, settings: as for `FusedHead`, of the whole; the same in every process.
        process_group: of torch.distributed, which must be initialised; None is the default group.

    Attributes:
        head: the share, a `FusedHead`. labels: number of all. begin, end: those of this process.

    Raises:
        ValueError: fewer groups of labels than processes; what `FusedHead` raises.
    """

    def __init__(
        self, width: int, labels: int, *, process_group: distributed.ProcessGroup | None = None, **settings: Any
    ) -> None:
        super().__init__()
        self._place(labels, settings.get("group", 1), process_group)
        self.head = FusedHead(width, self.end - self.begin, first_label=self.begin, **settings)

    def _place(self, labels: int, group: int, process_group: distributed.ProcessGroup | None) -> None:
        self.process_group, self.labels = process_group, labels
        self.rank, self.size = distributed.get_rank(process_group), distributed.get_world_size(process_group)
        self.begin, self.end = share_of(labels, self.rank, self.size, group)
        if -(-labels // group) < self.size:
            raise ValueError(
                f"labels must make at least {self.size} groups of {group}, one for each process, got {labels}"
            )

    def extra_repr(self) -> str:
        return f"labels {self.begin} to {self.end} of {self.labels}, process {self.rank} of {self.size}"

    @torch.no_grad()
    def step(
        self, x: Tensor, labels: Csr | Sequence[Sequence[int]], lr: float, *, scale: float = 1.0
    ) -> tuple[Tensor, float]:
        """As `FusedHead.step`, with x and labels the same in every process; so are (grad_x, loss)."""
        mine = self._mine(labels if isinstance(labels, Csr) else Csr.from_lists(labels, self.labels), len(x))
        grad_x, loss = self.head.step(x, mine, lr, scale=scale)
        total = torch.tensor(loss, dtype=torch.float64, device=grad_x.device)
        distributed.all_reduce(grad_x, group=self.process_group)
        distributed.all_reduce(total, group=self.process_group)
        return grad_x, float(total)

    def _mine(self, labels: Csr, batch: int) -> Csr:
        if labels.shape != (batch, self.labels):
            raise ValueError(f"labels must be of shape {(batch, self.labels)}, got {labels.shape}")
        here = (labels.indices >= self.begin) & (labels.indices < self.end)
        before = torch.nn.functional.pad(here.cumsum(0), (1, 0))
        shape = batch, self.end - self.begin
        return Csr(before[labels.offsets], labels.indices[here] - self.begin, None, shape)

    def topk(
        self, x: Tensor, k: int = 5, *, exclude: Csr | None = None, never: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """As `FusedHead.topk`, among all labels, by their number in the whole; the same in every process."""
        if exclude is not None and exclude.shape != (len(x), self.labels):
            raise ValueError(f"exclude must be of shape {(len(x), self.labels)}, got {exclude.shape}")
        head = self.head
        lists = None if exclude is None else (exclude.offsets, exclude.indices.to(torch.int64))
        found = fan_in_topk(
            x.detach().float(), head.values, head.indices, k, bias=head.bias, group=head.group, exclude=lists,
            never=never, first=self.begin,
        )  # fmt: skip
        parts = [[torch.empty_like(each) for _ in range(self.size)] for each in found]
        for every, mine in zip(parts, found, strict=True):
            distributed.all_gather(every, mine, group=self.process_group)
        return merge_topk(list(zip(*parts, strict=True)), k)

    def rewire(self, fraction: float | None = None, threshold: float | None = None, **how: Any) -> int:
        """As `FusedHead.rewire`, row by row, and with the same connections; the number of all that were replaced.

        Raises:
            ValueError: scope="global", which would have to compare connections of all processes.
        """
        if how.get("scope", "row") != "row":
            raise ValueError(f"scope must be 'row' where labels are divided among processes, got {how['scope']!r}")
        went = torch.tensor(self.head.rewire(fraction, threshold, **how), device=self.head.values.device)
        distributed.all_reduce(went, group=self.process_group)
        return int(went)

    def save(self, directory: str | os.PathLike[str]) -> Path:
        """Write every share, and then that they are one head: whole or not at all. `FusedHead.open` opens it too.

        Raises:
            OSError, ValueError: in every process, if one could not write its share.
        """
        root = Path(directory)
        token = [secrets.token_hex(6)]
        distributed.broadcast_object_list(token, src=self._first, group=self.process_group)
        folders = [f"share-{token[0]}-{rank}" for rank in range(self.size)]
        self._together(lambda: saved.save(self.head, root / folders[self.rank]))
        group = self.head.group
        bounds = [share_of(self.labels, rank, self.size, group)[0] for rank in range(self.size)] + [self.labels]
        self._together(lambda: store.write_shares(root, folders, bounds) if self.rank == 0 else None)
        return root

    @property
    def _first(self) -> int:
        """The global rank of this group's first process."""
        return 0 if self.process_group is None else distributed.get_global_rank(self.process_group, 0)

    def _together(self, work: Any) -> None:
        """Run `work`; if it fails in one process it has failed in all, and none waits for the others."""
        error: Exception | None = None
        try:
            work()
        except Exception as failed:
            error = failed
        said: list[str | None] = [None] * self.size
        distributed.all_gather_object(said, None if error is None else str(error), group=self.process_group)
        if error is not None:
            raise error
        for rank, words in enumerate(said):
            if words is not None:
                raise OSError(f"process {rank} could not save its share: {words}")

    @classmethod
    def open(
        cls,
        directory: str | os.PathLike[str],
        *,
        process_group: distributed.ProcessGroup | None = None,
        mmap: bool = True,
        verify: bool = False,
    ) -> ShardedHead:
        """This process's share of what any number of processes saved, or `FusedHead.save`. Training goes on with it.

        Raises:
            StoreError: nothing there, or damaged, edited, newer, or no head. ValueError: more processes than groups.
        """
        labels, group = saved.size_of(directory)
        sharded = cls.__new__(cls)
        nn.Module.__init__(sharded)
        sharded._place(labels, group, process_group)
        sharded.head = saved.load(FusedHead, directory, mmap=mmap, verify=verify, begin=sharded.begin, end=sharded.end)
        return sharded
