"""Objects of ours in a graph: as their handles, buffers of the graph module, which also keep the objects alive."""

from __future__ import annotations

from torch.fx import GraphModule, Node

from gossamer.handles import Handled


class _Alive:
    """Keeps an object alive, the same one in every copy of what refers to it: a copy has the handle of the first."""

    def __init__(self, owner: Handled) -> None:
        self.owner = owner

    def __deepcopy__(self, memo: dict[int, object]) -> _Alive:
        return self


def carry(gm: GraphModule, owner: Handled) -> Node:
    """A node, at the graph's place of insertion, whose value is the handle of an object such as a `Site`.

    A buffer becomes an input of the compiled code: no number of ours is in what inductor caches on disk.
    """
    name = f"gossamer_handle_{int(owner.handle)}"
    handle = owner.handle.clone()
    handle.gossamer_owner = _Alive(owner)  # type: ignore[attr-defined]
    gm.register_buffer(name, handle, persistent=False)
    sources = getattr(gm, "_param_name_to_source", None)
    if sources is not None:  # a graph of Dynamo's, which says of each buffer where it found it
        from torch._dynamo.source import ConstantSource

        sources[name] = ConstantSource(source_name=name)
    node = gm.graph.get_attr(name)
    node.meta["example_value"] = handle
    return node
