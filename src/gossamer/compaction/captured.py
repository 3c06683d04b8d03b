"""What a capture gives: one ATen graph, and which of its inputs are the parameters and buffers of the model."""

from __future__ import annotations

import dataclasses

from torch import Tensor, fx


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
    state name) of buffers that the forward pass assigns.
    """

    graph: fx.Graph
    tensors: dict[fx.Node, str]
    constants: dict[fx.Node, Tensor]
    inputs: dict[fx.Node, str]
    outputs: tuple[fx.Node, ...]
    writes: tuple[tuple[fx.Node, str], ...]
    route: str

    @property
    def calls(self) -> list[fx.Node]:
        return [node for node in self.graph.nodes if node.op == "call_function"]
