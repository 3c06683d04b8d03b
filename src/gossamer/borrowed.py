"""A layer's forward, which is somebody else's for the time of a pass.

    with borrowed([(layer, run)]):
        model(x)                        where model calls layer(y), it gets run(y)

Parameters, hooks and the user's lists of layers stay as they are. A copy of a layer that is made meanwhile, as an
average of weights in another thread makes it, has the layer's own forward, and works with its own weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

Run = Callable[..., Any]


class Borrowed:
    """What a layer does meanwhile: `run`, or what a subclass does. A copy of it is the layer's own forward."""

    def __init__(self, layer: nn.Module, run: Run | None = None, before: Run | None = None) -> None:
        self.layer, self.run, self.before = layer, run, before

    def __call__(self, *args: Any, **keywords: Any) -> Any:
        run = self.run or self.before
        return type(self.layer).forward(self.layer, *args, **keywords) if run is None else run(*args, **keywords)

    def __reduce__(self) -> tuple[Any, ...]:
        return Borrowed, (self.layer, None, self.before)


@contextmanager
def borrowed(runs: Iterable[tuple[nn.Module, Run]]) -> Iterator[None]:
    """Inside, calls of each layer are calls of what stands beside it; one thread has a layer at a time.

    >>> layer = nn.ReLU()
    >>> with borrowed([(layer, lambda x: x + 1)]):
    ...     layer(1)
    2
    """
    taken = []
    try:
        for layer, run in runs:
            mine = Borrowed(layer, run, layer.__dict__.get("forward"))
            taken.append(mine)
            layer.__dict__["forward"] = mine  # nn.Module's own assignment takes ten times as long
        yield
    finally:
        for mine in taken:
            mine.run = None  # who has kept it gets the layer's own
            if mine.before is None:
                mine.layer.__dict__.pop("forward", None)
            else:
                mine.layer.__dict__["forward"] = mine.before
