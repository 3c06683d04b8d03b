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

from gossamer.kernels.reference.fan_in_rewire import count_keys, cut_of_all
from gossamer.ops.fan_in.rewire import Scope
from gossamer.ops.fan_in.topk import fan_in_topk, merge_topk
from gossamer.ranks import Ranks
from gossamer.xmc.data.csr import Csr
from gossamer.xmc.heads import saved, store
from gossamer.xmc.heads.base_head import Head, checked_sets, checked_x, within
from gossamer.xmc.heads.features import beside
from gossamer.xmc.heads.growth import Growth
from gossamer.xmc.heads.head import FusedHead


def share_of(labels: int, rank: int, size: int, group: int = 1) -> tuple[int, int]:
    """The labels [begin, end) of a process: as many for each as there can be, in whole groups.

    >>> [share_of(100, rank, 3, 16) for rank in range(3)]
    [(0, 32), (32, 64), (64, 100)]
    """
    groups = -(-labels // group)
    begin, end = (groups * at // size * group for at in (rank, rank + 1))
    return begin, min(end, labels)


class ShardedHead(Head):
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
        self._place(width, labels, settings.get("group", 1), Ranks.of(process_group))
        self.head = FusedHead(width, self.end - self.begin, first_label=self.begin, **settings)

    def _place(self, width: int, labels: int, group: int, ranks: Ranks) -> None:
        self.ranks, self.width, self.labels = ranks, width, labels
        self.begin, self.end = share_of(labels, ranks.rank, ranks.size, group)
        if -(-labels // group) < ranks.size:
            raise ValueError(
                f"labels must make at least {ranks.size} groups of {group}, one for each process, got {labels}"
            )

    def extra_repr(self) -> str:
        return f"labels {self.begin} to {self.end} of {self.labels}, process {self.ranks.rank} of {self.ranks.size}"

    @property
    def steps(self) -> Tensor:
        return self.head.steps

    @torch.no_grad()
    def step(
        self,
        x: Tensor,
        labels: Csr | Sequence[Sequence[int]],
        lr: float,
        *,
        features: Csr | None = None,
        scale: float = 1.0,
    ) -> tuple[Tensor, float]:
        """As `FusedHead.step`, with all arguments the same in every process; so are (grad_x, loss)."""
        mine = within(checked_sets("labels", labels, len(x), self.labels), self.begin, self.end)
        grad_x, loss = self.head.step(x, mine, lr, features=features, scale=scale)
        total = torch.tensor(loss, dtype=torch.float64, device=grad_x.device)
        self.ranks.add(grad_x, total)
        return grad_x, float(total)

    def topk(
        self,
        x: Tensor,
        k: int = 5,
        *,
        features: Csr | None = None,
        exclude: Csr | None = None,
        never: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """As `FusedHead.topk`, among all labels, by their number in the whole; the same in every process."""
        head, lists = self.head, None
        x, indices = beside(checked_x(x, self.width, features), features, head.indices)
        if exclude is not None:
            checked_sets("exclude", exclude, len(x), self.labels)
            lists = exclude.offsets, exclude.indices.to(torch.int64)
        found = fan_in_topk(
            x, head.values, indices, k, bias=head.bias, group=head.group, exclude=lists, never=never,
            first=self.begin,
        )  # fmt: skip
        scores, ids = (self.ranks.gather(each) for each in found)
        return merge_topk(list(zip(scores, ids, strict=True)), k)

    def rewire(
        self,
        fraction: float | None = None,
        threshold: float | None = None,
        scope: Scope = "row",
        *,
        protect: int = 0,
        growth: Growth | None = None,
        **how: Any,
    ) -> int:
        """As `FusedHead.rewire`, with the same connections; the number of all that were replaced.

        With scope "global" a fraction is one of all labels of all processes, which add up a histogram of magnitudes.
        """
        if scope == "global" and fraction is not None and threshold is None and 0 <= fraction <= 1:
            fraction = self._share_of_weakest(fraction, protect)
        mine = None if growth is None else growth.within(self.begin, self.end, self.labels)
        went = self.head.rewire(fraction, threshold, scope, protect=protect, growth=mine, **how)
        total = torch.tensor(went, device=self.head.values.device)
        self.ranks.add(total)
        return int(total)

    def _share_of_weakest(self, fraction: float, protect: int) -> float:
        """The fraction of this process's connections that are among the weakest of all; of equal ones the first go."""
        head, ranks = self.head, self.ranks
        drop = round(fraction * -(-self.labels // head.group) * head.fan_in)
        cut, equal = cut_of_all(head.values, head.ages, head.group, drop, protect, ranks.add)
        here = count_keys(head.values, head.ages, head.group, protect, cut)
        before = sum(int(each[1]) for each in ranks.gather(here)[: ranks.rank])
        return (int(here[0]) + min(max(equal - before, 0), int(here[1]))) / head.indices.numel()

    def set_bias(self, bias: Tensor) -> None:
        """Take this process's share of float32[labels]."""
        self.head.set_bias(bias[self.begin : self.end])

    def save(self, directory: str | os.PathLike[str]) -> Path:
        """Write every share, and then that they are one head: whole or not at all. `FusedHead.open` opens it too.

        Raises:
            OSError, ValueError: in every process, if one could not write its share.
        """
        root, ranks = Path(directory), self.ranks
        ranks.together(lambda: store.check_ours(root), first=True)  # before shares are written that nothing would name
        token = ranks.same(secrets.token_hex(6))
        folders = [f"share-{token}-{rank}" for rank in range(ranks.size)]
        ranks.together(lambda: saved.save(self.head, root / folders[ranks.rank]))
        bounds = [share_of(self.labels, rank, ranks.size, self.head.group)[0] for rank in range(ranks.size)]
        ranks.together(lambda: store.write_shares(root, folders, [*bounds, self.labels]), first=True)
        return root

    def state_dict(self, *args: Any, destination: Any = None, prefix: str = "", keep_vars: bool = False) -> Any:
        """That of a `FusedHead` with all labels, in the first process; in the others there is nothing of it.

        All processes call it together. `load_state_dict` takes it, for any number of processes.
        """
        destination = {} if destination is None else destination
        for name, mine in self.head.named_buffers():
            if name == "steps":
                whole: Tensor | None = mine.detach().clone()
            else:
                bounds = [self._rows(name, rank) for rank in range(self.ranks.size)]
                each = store.bytes_of(mine.detach().contiguous())
                row = each.numel() // len(mine)
                found = self.ranks.collect(each, [row * (end - begin) for begin, end in bounds])
                whole = None if found is None else found.view(mine.dtype).view(bounds[-1][1], *mine.shape[1:])
            if whole is not None and self.ranks.first:
                destination[prefix + name] = whole
        return destination

    def _rows(self, name: str, rank: int) -> tuple[int, int]:
        """The rows [begin, end) of a tensor of the whole that a process has."""
        begin, end = share_of(self.labels, rank, self.ranks.size, self.head.group)
        return (begin // self.head.group, -(-end // self.head.group)) if name in saved.BY_ROW else (begin, end)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        for name, _ in self.head.named_buffers():
            whole = state_dict.pop(prefix + name, None)
            if isinstance(whole, Tensor) and name != "steps" and len(whole) == self._rows(name, self.ranks.size - 1)[1]:
                begin, end = self._rows(name, self.ranks.rank)
                whole = whole[begin:end]
            if whole is not None:
                state_dict[f"{prefix}head.{name}"] = whole
        super()._load_from_state_dict(state_dict, prefix, *args)

    def subset(self, labels: Tensor) -> Head:
        raise RuntimeError("a head whose labels are divided among processes gives no subset; open it in one process")

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
        return cls.share(directory, Ranks.of(process_group), mmap=mmap, verify=verify)

    @classmethod
    def share(cls, directory: str | os.PathLike[str], ranks: Ranks, *, mmap: bool, verify: bool) -> ShardedHead:
        """As `open`, of these processes."""
        labels, group = saved.size_of(directory)
        sharded = cls.__new__(cls)
        nn.Module.__init__(sharded)
        sharded._place(0, labels, group, ranks)
        sharded.head = saved.load(FusedHead, directory, mmap=mmap, verify=verify, begin=sharded.begin, end=sharded.end)
        sharded.width = sharded.head.width
        return sharded
