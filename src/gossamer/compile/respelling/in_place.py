"""Writes in place of a value that nobody else sees are no writes: later readers get the new value."""

from __future__ import annotations

from torch.fx import Graph, Node

from gossamer.compile.operators import call_of
from gossamer.compile.operators.call import Call
from gossamer.compile.operators.elementwise import NAMES
from gossamer.compile.respelling.writer import Writer

_MAY_BE_ITS_INPUT = frozenset(
    (
        "to",
        "float",
        "half",
        "bfloat16",
        "double",
        "contiguous",
        "detach",
        "alias",
        "type",
        "type_as",
        "positive",
        "dropout",
    )
)
_MAKES = (NAMES - _MAY_BE_ITS_INPUT) | frozenset(
    ("linear", "matmul", "bmm", "addmm", "layer_norm", "rms_norm", "embedding", "softmax", "cat", "sum", "mean",
     "scaled_dot_product_attention", "group_norm", "conv2d", "batch_norm", "gather")
)  # fmt: skip
"""Operators whose result has memory of its own."""
_FUNCTIONS = {"add": "add", "sub": "sub", "mul": "mul", "div": "div", "relu": "relu", "tanh": "tanh",
              "sigmoid": "sigmoid", "clamp": "clamp", "masked_fill": "masked_fill", "neg": "neg", "exp": "exp",
              "sqrt": "sqrt", "abs": "abs", "pow": "pow", "scatter": "scatter"}  # fmt: skip


def out_of_place(graph: Graph) -> None:
    for node in list(graph.nodes):
        call = call_of(node)
        if call is None or not call.in_place or call.name not in _FUNCTIONS or not node.args:
            continue
        written = node.args[0]
        if not isinstance(written, Node) or not _is_alone(written, node) or "out" in node.kwargs:
            continue
        inputs = {name: value for name, value in node.kwargs.items() if name != "inplace"}
        more = () if call.name == "relu" else node.args[1:]
        new = Writer(node).method(_FUNCTIONS[call.name], written, *more)
        if inputs or new.meta["example_value"].dtype != node.meta["example_value"].dtype:
            graph.erase_node(new)
            continue
        new.meta = dict(node.meta)  # its memory too: whoever views it later has an example value there
        later = _after(node)
        written.replace_all_uses_with(new, delete_user_cb=lambda user, later=later: user in later)  # type: ignore[misc]
        node.replace_all_uses_with(new)
        graph.erase_node(node)


def _after(node: Node) -> set[Node]:
    nodes = list(node.graph.nodes)
    return set(nodes[nodes.index(node) + 1 :])


def _is_alone(written: Node, writer: Node) -> bool:
    """Whether a value has memory of its own, which nobody sees but who reads this very value."""
    maker = call_of(written)
    if maker is None or maker.in_place:
        return False
    if maker.name == "getitem":  # a piece of a tuple: values and indices of topk
        source: Call | None = call_of(written.args[0]) if isinstance(written.args[0], Node) else None
        if source is None or source.name not in ("topk", "sort", "max", "min"):
            return False
    elif maker.name not in _MAKES:
        return False
    later = _after(writer)
    return not any(_may_view(reader) for reader in written.users if reader is not writer and reader not in later)


def _may_view(reader: Node) -> bool:
    """Whether an earlier reader may have kept the same memory."""
    call = call_of(reader)
    return call is None or call.name not in _MAKES
