"""What a capture gives: one ATen graph, and which of its inputs are the parameters and buffers of the model."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from torch import Tensor, fx
from torch.utils import _pytree as pytree


def tensor_leaves(output: Any) -> list[Tensor]:
    """Every tensor in a forward output, in order: tensors, containers, dataclasses and mappings alike."""
    if isinstance(output, Tensor):
        return [output]
    if dataclasses.is_dataclass(output) and not isinstance(output, type):
        values: list[Any] = [getattr(output, item.name) for item in dataclasses.fields(output)]
    elif isinstance(output, Mapping):
        values = list(output.values())
    elif isinstance(output, (tuple, list)):
        values = list(output)
    else:
        return [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor)]
    return [leaf for value in values for leaf in tensor_leaves(value)]


class CaptureError(RuntimeError):
    """The model could not be traced into one graph.

    `causes` has one line per route tried; `paths` = the modules that were running at the first cause, innermost first.
    """

    def __init__(self, message: str, causes: list[str], paths: tuple[str, ...] = ("",)) -> None:
        super().__init__(message)
        self.causes, self.paths = causes, paths


@dataclasses.dataclass(frozen=True)
class Capture:
    """An ATen graph.

    `tensors` maps nodes to state names, `constants` to tensors that are neither state nor input; `writes` = (node,
    state name) of buffers that the forward pass assigns. `watches` = {number of a forward hook: it only watches}.
    """

    graph: fx.Graph
    tensors: dict[fx.Node, str]
    constants: dict[fx.Node, Tensor]
    inputs: dict[fx.Node, str]
    outputs: tuple[fx.Node, ...]
    writes: tuple[tuple[fx.Node, str], ...]
    route: str
    watches: Mapping[int, bool] = dataclasses.field(default_factory=dict)

    @property
    def calls(self) -> list[fx.Node]:
        return [node for node in self.graph.nodes if node.op == "call_function"]
