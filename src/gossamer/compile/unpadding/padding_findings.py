"""What the padding pass says of each operator: what it computes, and how much of it was padding."""

from __future__ import annotations

from torch.fx import Node

from gossamer.compile.finding import Finding
from gossamer.compile.operators import Names, call_of, operator_of
from gossamer.compile.tally import Tally
from gossamer.compile.unpadding.packing import Packing
from gossamer.compile.unpadding.padding import Plan, Refusal
from gossamer.compile.work import PRODUCTS, work_of

_ATTENTION = "scaled_dot_product_attention"


def findings_of(found: Plan | Refusal, tally: Tally) -> list[Finding]:
    """One for each product and attention that is packed, or that would have said where the padding is."""
    packing = found.packing
    if packing is None:
        return []
    names = Names(packing.axes, {packing.batch: "b", packing.sequence: "s"})
    if isinstance(found, Refusal):
        return [_finding(node, packing, names, tally, found.why) for node in found.attention]
    packed = [node for node in packing.axes.labels if node in packing.env and call_of(node) is not None]
    return [_finding(node, packing, names, tally) for node in packed if _name(node) in PRODUCTS]


def _name(node: Node) -> str:
    call = call_of(node)
    return "" if call is None else call.name


def _finding(node: Node, packing: Packing, names: Names, tally: Tally, refused: str = "") -> Finding:
    call = call_of(node)
    assert call is not None
    known = operator_of(call)
    expression = (known.expression(call, names) if known is not None else None) or ""
    operator = "attention" if call.name == _ATTENTION else call.name
    if refused:
        return Finding(node.name, operator, expression, "padding", (), "dense", refused, work=work_of(call))
    if operator == "attention" and not packing.has_tokens(packing.axes.of(call.operands[1])):
        why = "its keys are other texts, which are read whole by whole queries; what is made of it is packed"
        return Finding(node.name, operator, expression, "", (), "dense", why, work=work_of(call))
    saved = tally.pairs_saved if operator == "attention" else tally.tokens_saved
    return Finding(
        node.name, operator, expression, "padding", ("b", "s"), "packed", "padding is left out before the first layer",
        saved, work_of(call),
    )  # fmt: skip
