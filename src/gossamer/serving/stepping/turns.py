"""One thread at a time."""

from __future__ import annotations

import threading
from weakref import WeakKeyDictionary

from torch import nn


class Turns:
    """A lock that its holder may take again. A copy, or one that is read from a file, is a lock of its own.

    >>> import copy
    >>> with Turns() as turns, copy.deepcopy(turns), turns:
    ...     print("mine")
    mine
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()

    def __enter__(self) -> Turns:
        self._lock.acquire()
        return self

    def __exit__(self, *error: object) -> None:
        self._lock.release()

    def __reduce__(self) -> tuple[type[Turns], tuple[()]]:
        return Turns, ()


_OF: WeakKeyDictionary[nn.Module, Turns] = WeakKeyDictionary()


def turns_of(model: nn.Module) -> Turns:
    """The turns of all who change a model for the time of a call, and make it what it was after it."""
    return _OF.setdefault(model, Turns())
