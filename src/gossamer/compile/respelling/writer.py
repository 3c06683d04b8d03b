"""Write nodes into a graph that know what they make."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import map_arg


def copied(gm: GraphModule) -> GraphModule:
    """Another graph of the same module, nodes with the same meta."""
    graph = Graph()
    output = graph.graph_copy(gm.graph, {})
    graph.output(output)
    return GraphModule(gm, graph)


class Writer:
    """Puts calls before a node, each with the example value that the call makes."""

    def __init__(self, at: Node) -> None:
        self.at, self.graph = at, at.graph

    def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Node:
        with self.graph.inserting_before(self.at):
            return self._known(self.graph.call_function(function, args, kwargs), function, args, kwargs)

    def method(self, name: str, *args: Any) -> Node:
        with self.graph.inserting_before(self.at):
            return self._known(self.graph.call_method(name, args), lambda x, *more: getattr(x, name)(*more), args, {})

    def _known(self, node: Node, function: Callable[..., Any], args: Any, kwargs: Any) -> Node:
        def value(of: Node) -> Any:
            return of.meta["example_value"]

        args, kwargs = map_arg((args, kwargs), value)
        leaves = torch.utils._pytree.tree_leaves((args, kwargs))
        mode = next(each.fake_mode for each in leaves if isinstance(each, FakeTensor))
        with mode, torch.no_grad():
            node.meta["example_value"] = function(*args, **kwargs)
        return node
