"""Processes that hold one model together: the first one decides, and the others do what it tells them.

Rank 0 has requests, scheduling and sampling. Before each pass it sends what has happened since the last one; the others
have schedulers of their own, which are told the same and so come to the same plan. A pass is then one of all ranks, who
add up what their heads and neurons say.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

from torch import distributed

from gossamer.ranks import Ranks
from gossamer.serving.paging.pages import OutOfPages

_IDLE = timedelta(days=365)
"""Nobody may ask for long, and the others wait. A process that has gone is noticed at once, by its connection."""
Made = TypeVar("Made")


class RankLost(ConnectionError):
    """The processes that held a model can go on no more: one has ended, or left a pass in its middle."""


class Team:
    """The ranks of a group.

    Args:
        group: of torch.distributed; all its processes make a team of it at once.

    Attributes:
        ranks: who adds up tensors. words: who sends and hears what happens, over gloo.
    """

    def __init__(self, group: distributed.ProcessGroup) -> None:
        self.ranks = Ranks.of(group)
        self.ranks.together(lambda: None)  # a process that has gone is noticed here: the next line could wait for ever
        members = distributed.get_process_group_ranks(group)
        own = distributed.new_group(members, backend="gloo", timeout=_IDLE, use_local_synchronization=True)
        self.words = Ranks.of(own)
        self.lost: str | None = None
        self._events: list[tuple[Any, ...]] = []

    @property
    def first(self) -> bool:
        return self.ranks.first

    def tell(self, *event: Any) -> None:
        """Rank 0: something that the others shall do too, in this order, at the next `send`."""
        self._events.append(event)

    def send(self) -> None:
        """Rank 0: the others hear what they were told.

        Raises:
            RankLost: one of them has gone.
        """
        self._check()
        events, self._events = self._events, []
        self._shared(lambda: self.words.same(events))

    def hear(self) -> list[tuple[Any, ...]]:
        """Another rank: wait for what rank 0 tells.

        Raises:
            RankLost: it has gone.
        """
        self._check()
        return self._shared(lambda: self.words.same(None))

    def every(self, make: Callable[[], Made]) -> list[Made]:
        """What each rank makes; all ranks call this together.

        Raises:
            ValueError: of one rank, in all of them. RankLost: one of them has gone.
        """
        self._check()
        value, error = None, None
        try:
            value = make()
        except ValueError as failed:
            error = failed
        said = [None if error is None else str(error), value]
        all_said: list[Any] = [None] * self.words.size
        self._shared(lambda: distributed.all_gather_object(all_said, said, group=self.words.group))
        if error is not None:
            raise error
        for rank, (words, _) in enumerate(all_said):
            if words is not None:
                raise ValueError(f"rank {rank}: {words}")
        return [made for _, made in all_said]

    def neighbours(self) -> int:
        """How many of the ranks share this machine, with this one."""
        hosts = self.every(socket.gethostname)
        return hosts.count(hosts[self.words.rank])

    @contextmanager
    def passing(self) -> Iterator[None]:
        """Inside, ranks wait for each other; whoever leaves it by an error cannot be waited for any more.

        Raises:
            RankLost: in place of other errors.
        """
        self._check()
        try:
            yield
        except (RankLost, OutOfPages):  # all come to the same when there are no pages
            raise
        except BaseException as error:
            lost = self.lose(error)
            if isinstance(error, Exception):
                raise lost from error
            raise

    def lose(self, error: BaseException) -> RankLost:
        """Nothing can be done together any more; the error that says so."""
        self._events, self.lost = [], " ".join(str(error).split()) or type(error).__name__
        return self._error()

    def _check(self) -> None:
        if self.lost is not None:
            raise self._error()

    def _error(self) -> RankLost:
        return RankLost(
            f"rank {self.ranks.rank} of {self.ranks.size} cannot go on, another has ended or a pass failed in its "
            f"middle: {self.lost:.200}; all have to be started again"
        )

    def _shared(self, work: Callable[[], Any]) -> Any:
        try:
            return work()
        except RuntimeError as error:  # what torch.distributed raises for connections that are gone
            raise self.lose(error) from error
