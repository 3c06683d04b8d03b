"""torch.compiler.assume_constant_result without what it imports: with it, `import gossamer.ops` would bring triton."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

F = TypeVar("F", bound=Callable[..., object])


def constant_in_graphs(function: F) -> F:
    """Under torch.compile the function runs once, while the graph is made, and its result is a constant of it."""
    vars(function)["_dynamo_marked_constant"] = True
    return function
