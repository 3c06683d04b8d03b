"""An empty tensor that is filled piece by piece along one dimension is a concatenation, as DeepSeek writes its keys."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.fx import Graph, Node

from gossamer.compile.operators import call_of
from gossamer.compile.respelling.writer import Writer

_EMPTY = frozenset({"new_empty", "empty", "empty_like"})


@dataclass(frozen=True)
class _Write:
    """x[..., start:stop].copy_(source)."""

    piece: Node
    copy: Node
    source: Node
    start: int
    stop: int


def concatenated(graph: Graph) -> None:
    for node in list(graph.nodes):
        call = call_of(node)
        if call is None or call.name not in _EMPTY:
            continue
        value = node.meta.get("example_value")
        writes = _writes(node) if isinstance(value, torch.Tensor) and value.dim() else []
        if not writes or not _fill(node, writes):
            continue
        new = Writer(writes[-1].copy).call(torch.cat, [write.source for write in writes], -1)
        if not _alike(new.meta["example_value"], value):
            graph.erase_node(new)
            continue
        for write in writes:
            graph.erase_node(write.copy)
            graph.erase_node(write.piece)
        node.replace_all_uses_with(new)
        graph.erase_node(node)


def _writes(empty: Node) -> list[_Write]:
    """The writes into its pieces along the last dimension, in order of the graph, until it is read otherwise."""
    found: list[_Write] = []
    size = empty.meta["example_value"].shape[-1]
    for reader in (node for node in empty.graph.nodes if node in empty.users):
        call, copy = call_of(reader), next(iter(reader.users), None)
        written = call_of(copy) if copy is not None else None
        index = reader.args[1] if call is not None and call.name == "getitem" else None
        piece = (
            isinstance(index, tuple) and len(index) == 2 and index[0] is Ellipsis and isinstance(index[1], slice)
            and index[1].step is None and len(reader.users) == 1 and isinstance(size, int)
        )  # fmt: skip
        if not piece or copy is None or written is None or not _is_copy(copy, reader):
            break
        assert isinstance(index, tuple) and isinstance(index[1], slice) and isinstance(copy.args[1], Node)
        bounds = (index[1].start, index[1].stop)
        if not all(each is None or isinstance(each, int) for each in bounds):
            break
        start, stop, _ = index[1].indices(size)
        found.append(_Write(reader, copy, copy.args[1], start, stop))
    return found


def _is_copy(copy: Node, into: Node) -> bool:
    return (
        copy.op == "call_method" and copy.target == "copy_" and len(copy.args) == 2 and copy.args[0] is into
        and isinstance(copy.args[1], Node) and not copy.users
    )  # fmt: skip


def _fill(empty: Node, writes: list[_Write]) -> bool:
    """Whether they fill it from one end to the other, before anybody else reads it."""
    ends = [0, *(write.stop for write in writes)]
    if [write.start for write in writes] != ends[:-1] or ends[-1] != empty.meta["example_value"].shape[-1]:
        return False
    order = {node: at for at, node in enumerate(empty.graph.nodes)}
    pieces, last = {write.piece for write in writes}, order[writes[-1].copy]
    shapes = [(write.source.meta.get("example_value"), write.piece.meta.get("example_value")) for write in writes]
    if not all(isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor) and a.shape == b.shape for a, b in shapes):
        return False  # what a copy broadcasts no concatenation does
    return all(order[user] > last for user in empty.users if user not in pieces)


def _alike(new: torch.Tensor, old: torch.Tensor) -> bool:
    return new.shape == old.shape and new.dtype == old.dtype and new.device == old.device
