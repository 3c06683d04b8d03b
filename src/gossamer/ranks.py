"""The processes that something is divided among: one, or those of a group of torch.distributed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, distributed


@dataclass(frozen=True, eq=False)
class Ranks:
    """This process, `rank` of `size`; with one process nothing here communicates.

    >>> Ranks().same("word"), Ranks().first
    ('word', True)
    """

    rank: int = 0
    size: int = 1
    group: distributed.ProcessGroup | None = None

    @classmethod
    def of(cls, group: distributed.ProcessGroup | None = None) -> Ranks:
        """Those of a group of torch.distributed, which must be initialised; None is the default group."""
        return cls(distributed.get_rank(group), distributed.get_world_size(group), group)

    @property
    def first(self) -> bool:
        """True in the one process that writes what belongs to all."""
        return self.rank == 0

    def add(self, *tensors: Tensor) -> None:
        """Replace each tensor by its sum over the processes."""
        if self.size > 1:
            for tensor in tensors:
                distributed.all_reduce(tensor, group=self.group)

    def gather(self, tensor: Tensor) -> list[Tensor]:
        """The tensors of all processes, which have one shape."""
        if self.size == 1:
            return [tensor]
        every = [tensor.new_empty(tensor.shape) for _ in range(self.size)]
        distributed.all_gather(every, tensor.contiguous(), group=self.group)
        return every

    def same(self, value: Any) -> Any:
        """The value of the first process, in all."""
        if self.size == 1:
            return value
        held = [value]
        distributed.broadcast_object_list(held, src=self._global(0), group=self.group)
        return held[0]

    def collect(self, mine: Tensor, sizes: list[int]) -> Tensor | None:
        """uint8[sizes[rank]] of every process, one after the other, in the first one; None in the others."""
        if not self.first:
            distributed.send(mine, self._global(0), group=self.group)
            return None
        every = mine.new_empty(sum(sizes))
        parts = every.split(sizes)
        parts[0].copy_(mine)
        for rank in range(1, self.size):
            distributed.recv(parts[rank], self._global(rank), group=self.group)
        return every

    def _global(self, rank: int) -> int:
        return rank if self.group is None else distributed.get_global_rank(self.group, rank)

    def together(self, work: Callable[[], Any], *, first: bool = False) -> None:
        """Run `work`, or only the first process's; if it fails in one process it has failed in all, and none waits.

        Raises:
            what `work` raised; OSError in the others.
        """
        error: Exception | None = None
        try:
            if self.first or not first:
                work()
        except Exception as failed:
            error = failed
        said: list[str | None] = [None if error is None else str(error)]
        if self.size > 1:
            said *= self.size
            distributed.all_gather_object(said, said[0], group=self.group)
        if error is not None:
            raise error
        for rank, words in enumerate(said):
            if words is not None:
                raise OSError(f"process {rank} could not do its share: {words}")


ALONE = Ranks()
