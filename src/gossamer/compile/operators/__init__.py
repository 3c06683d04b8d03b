"""What the compiler knows of torch's operators, by closed families."""

from __future__ import annotations

from gossamer.compile.operators import along, elementwise
from gossamer.compile.operators.attention import Attention, CrossEntropy
from gossamer.compile.operators.call import Call, call_of, is_tensor
from gossamer.compile.operators.experts import ExpertIndex, ExpertRows
from gossamer.compile.operators.operator import CannotPack, Names, Operator, Packer
from gossamer.compile.operators.products import Addmm, Embedding, Linear, Matmul
from gossamer.compile.operators.views import Expand, GetItem, Join, Permute, Pieces, Reshape

_RESHAPES = ("view", "view_as", "reshape", "reshape_as", "flatten", "unflatten", "squeeze", "unsqueeze")
_OF: dict[str, Operator] = {
    **dict.fromkeys(elementwise.NAMES, elementwise.Elementwise()),
    **dict.fromkeys(along.SOFTMAX, along.Along()),
    **dict.fromkeys(along.NORMS, along.Norm()),
    **dict.fromkeys(along.REDUCTIONS, along.Reduction()),
    **dict.fromkeys(_RESHAPES, Reshape()),
    **dict.fromkeys(("permute", "transpose", "t"), Permute()),
    **dict.fromkeys(("chunk", "split", "unbind"), Pieces()),
    **dict.fromkeys(("matmul", "mm", "bmm"), Matmul()),
    **dict.fromkeys(("expand", "expand_as"), Expand()),
    **dict.fromkeys(("topk", "sort"), along.Selection()),
    **dict.fromkeys(("gather", "scatter"), along.Picking()),
    "cat": Join(),
    "expert_index": ExpertIndex(),
    "expert_rows": ExpertRows(),
    "getitem": GetItem(),
    "linear": Linear(),
    "addmm": Addmm(),
    "embedding": Embedding(),
    "scaled_dot_product_attention": Attention(),
    "cross_entropy": CrossEntropy(),
}  # fmt: skip


def operator_of(call: Call) -> Operator | None:
    """What is known of a call, or None."""
    return None if call.in_place else _OF.get(call.name)


__all__ = ["Call", "CannotPack", "Names", "Operator", "Packer", "call_of", "is_tensor", "operator_of"]
