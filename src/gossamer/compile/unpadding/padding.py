"""Find the part of a graph that padding can be left out of, and all that must hold for that.

Attention with a mask says which axes are a batch and its tokens: its queries, keys and values have them. What is made
of its result token by token is packed too (`packing`), until somebody needs the tokens that were left
out. Who may see zeros in their place: an output of the graph; who reads tokens that are kept; who multiplies by a mask.
For these there are conditions (`gossamer.compile.conditions`), checked in every call. Anybody else keeps it dense.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Graph, Node
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from gossamer.compile.conditions import (
    Condition,
    KeptAt,
    KeptWhere,
    UnseenWhereDropped,
    ZeroWhereDropped,
)
from gossamer.compile.labelling import labelled
from gossamer.compile.labels import Axes
from gossamer.compile.modes import goes_on_in_python, has_effect, under_other_modes
from gossamer.compile.operators import Call, CannotPack, call_of, is_tensor, operator_of
from gossamer.compile.operators.attention import Attention, check_mask, shapes
from gossamer.compile.operators.views import GetItem
from gossamer.compile.unpadding.packing import Attend, Packing

_ATTENTION = Attention()
_SIZES = frozenset({"size", "dim", "numel", "shape", "getattr", "stride"})
_SLICES = frozenset({"getitem", "narrow", "cat", "contiguous", "clone", "detach", "transpose", "permute"})
_NO_ZERO_LOST = """
    view reshape flatten unflatten squeeze unsqueeze permute transpose t getitem expand chunk to float half double
    bfloat16 contiguous clone detach dropout neg sum
"""
_KEEPS_ZERO = frozenset(_NO_ZERO_LOST.split())


@dataclass
class Plan:
    """A graph in three parts.

    Attributes:
        packing: the packed graph; `region` are the nodes it stands for.
        exits: nodes that the rest reads and the packed graph makes, in order.
        masks: masks that say which tokens are there.
        conditions: what must hold at run time.
        others: whether there is attention of other tokens to themselves, such as a decoder's behind an encoder.
    """

    packing: Packing
    region: list[Node]
    exits: list[Node]
    masks: list[Node]
    conditions: list[Condition]
    others: bool = False


@dataclass(frozen=True)
class Refusal:
    """Why a graph stays dense, and which attention said where its padding is."""

    why: str
    packing: Packing | None = None
    attention: tuple[Node, ...] = ()


def plan(graph: Graph, attend: Attend, attend_across: Attend) -> Plan | Refusal:
    """What can be packed in a graph whose nodes have example values."""
    strange = _strange(graph)
    if strange:
        return Refusal(strange)
    masked = [call for node in graph.nodes if (call := call_of(node)) and call.name == "scaled_dot_product_attention"]
    masked = [call for call in masked if _ATTENTION.mask(call) is not None]
    if not masked:
        return Refusal(_without_masks(graph))
    axes = labelled(graph)
    pair = _pair(masked, axes)
    if pair is None:
        return Refusal("no attention of tokens to themselves over [batch, heads, tokens, width]")
    batch, sequence = pair
    anchors = [call for call in masked if _tokens(call, axes) == pair]
    descendants = _descendants(graph, {call.node for call in anchors})
    modes, goes_on = under_other_modes(graph), goes_on_in_python()
    packing = Packing(axes, batch, sequence, descendants, modes, attend, attend_across, goes_on)
    try:
        found = _packed(graph, packing, anchors)
        found.others = any(_tokens(call, axes) not in (None, pair) for call in masked)
        return found
    except CannotPack as error:
        return Refusal(str(error), packing, tuple(call.node for call in anchors))


def _without_masks(graph: Graph) -> str:
    """Why no attention says where padding is."""
    for node in graph.nodes:
        call = call_of(node)
        if call is not None and call.name == "softmax" and _is_joined(node.all_input_nodes[0]):
            return (
                f"attention is written by hand, and its scores are joined with others before {node.name}, as with "
                "attention sinks: how much weight keys have is then not known to be theirs alone"
            )
    return "no attention with a mask, which would say where the padding is"


def _is_joined(scores: Node) -> bool:
    call = call_of(scores)
    if call is not None and call.name == "sub":  # of their largest
        call = call_of(call.operands[0])
    return call is not None and call.name == "cat"


def _strange(graph: Graph) -> str:
    """What no part of the compiler is made for."""
    for node in graph.nodes:
        value = node.meta.get("example_value")
        if node.op == "placeholder" and value is None:
            return f"nothing is known of the shape of {node.name}"
        if isinstance(value, torch.Tensor) and is_traceable_wrapper_subclass(value):
            return f"{node.name} is a {type(value).__name__}, not a plain tensor"
    return ""


def _tokens(call: Call, axes: Axes) -> tuple[int, int] | None:
    """Batch and sequence of attention to itself."""
    labels = [axes.of(each) for each in call.operands[:3]]
    if any(len(label) != 4 for label in labels):
        return None
    batches, sequences = {label[0] for label in labels}, {label[2] for label in labels}
    if len(batches) != 1 or len(sequences) != 1:
        return None
    (batch,), (sequence,) = batches, sequences
    return (batch[0], sequence[0]) if len(batch) == len(sequence) == 1 and batch != sequence else None


def _pair(masked: list[Call], axes: Axes) -> tuple[int, int] | None:
    """The batch and sequence that most attention runs over."""
    count = Counter(pair for call in masked if (pair := _tokens(call, axes)) is not None)
    return count.most_common(1)[0][0] if count else None


def _descendants(graph: Graph, roots: set[Node]) -> set[Node]:
    found = set(roots)
    for node in graph.nodes:
        if node.op != "output" and any(source in found for source in node.all_input_nodes):
            found.add(node)
    return found


def _packed(graph: Graph, packing: Packing, anchors: list[Call]) -> Plan:
    """Pack what depends on attention, in order. Raises CannotPack where that would not be right."""
    region: list[Node] = []
    zero: dict[Node, tuple[Condition, ...]] = {}
    reasons: dict[Node, str] = {}
    for node in graph.nodes:
        if node not in packing.descendants or _is_number(node):
            continue  # sizes of dense tensors are known whatever is packed
        call = call_of(node)
        try:
            made = _pack(node, call, packing, reasons)
            if call is not None and call.name == "getitem" and node.args[0] in packing.inside:
                packing.keep_inside(node)
            elif call is not None and call.name != "cross_entropy" and is_tensor(node):
                packing.rest(packing.axes.of(node))  # a result without tokens would be of those that are there
            packing.env[node] = made
        except (CannotPack, AssertionError, IndexError, TypeError, ValueError) as error:
            reasons[node] = str(error) or f"{node.name} is called in a way that is not known"
            continue
        region.append(node)
        known = _zero(node, call, packing, zero)
        if known is not None:
            zero[node] = known
    for call in anchors:
        if call.node not in packing.env:
            raise CannotPack(f"attention {call.node.name}: {reasons[call.node]}")
    conditions: list[Condition] = list(packing.conditions)
    inside = set(region)
    exits: list[Node] = []
    for node in readers(graph, inside):
        for source in node.all_input_nodes:
            if source in inside:
                conditions += _leave(source, node, packing, zero, reasons)
                exits.append(source)
    exits = list(dict.fromkeys(exits))
    return Plan(packing, region, exits, list(packing.kinds), list(dict.fromkeys(conditions)))


def _is_number(node: Node) -> bool:
    """Sizes, numbers and tuples of them."""
    value = node.meta.get("example_value")
    if isinstance(value, (tuple, list)):
        return all(isinstance(each, (int, float, torch.SymInt, torch.SymFloat)) for each in value)
    return isinstance(value, (int, float, bool, torch.SymInt, torch.SymFloat, torch.SymBool, torch.dtype, torch.device))


def readers(graph: Graph, inside: set[Node]) -> list[Node]:
    """What is left of the graph when `inside` is computed elsewhere: the output, and what it needs."""
    output = next(iter(reversed(graph.nodes)))
    needed = {output}
    for node in reversed(graph.nodes):
        if node in inside or not (node in needed or has_effect(node)):
            continue
        needed.add(node)
        needed.update(node.all_input_nodes)
    return [node for node in graph.nodes if node in needed and node not in inside]


def _pack(node: Node, call: Call | None, packing: Packing, reasons: dict[Node, str]) -> Any:
    known = operator_of(call) if call is not None else None
    if node in packing.elsewhere:
        raise CannotPack(f"{node.name} runs under another mode than the graph begins with")
    if call is not None and call.in_place:
        raise CannotPack(f"{call.name} writes in place")
    if call is None or known is None:
        raise CannotPack(f"nothing is known of {call.name if call is not None else node.op}")
    for source in node.all_input_nodes:
        if source in reasons:
            raise CannotPack(reasons[source])
    return known.pack(call, packing)


def _leave(
    source: Node, reader: Node, packing: Packing, zero: dict[Node, tuple[Condition, ...]], reasons: dict[Node, str]
) -> Iterable[Condition]:
    """What must hold so that `reader` may find zeros where tokens were left out. Raises CannotPack if nothing helps."""
    if source in packing.inside:
        raise CannotPack(f"{source.name} is of the tokens that are there, and is read by {reader.name}")
    call = call_of(reader)
    shown = _only_shown(reader)
    if call is not None and call.name == "getitem" and is_tensor(source) and reader.args[0] is source:
        condition = _chosen(call, packing) if source not in zero else None
        piece = isinstance(condition, KeptAt) and isinstance(condition.at, tuple)
        if condition is not None and not (shown and piece):
            return (condition,)
    if (shown and not packing.goes_on) or (is_tensor(source) and not packing.has_tokens(packing.axes.of(source))):
        return ()
    if not is_tensor(source):
        raise CannotPack(f"{reader.name} reads several results of {source.name} at once")
    if source in zero:
        return zero[source]
    if call is not None and call.name in _SIZES:
        return ()
    if call is not None and call.name == "scaled_dot_product_attention" and source in call.operands[1:3]:
        mask = _ATTENTION.mask(call)
        outside = mask is not None and mask not in packing.descendants and source is not call.operands[0]
        if mask is not None and outside and packing.place(packing.axes.of(source)) == (0, 2, None):
            check_mask(mask, *shapes(*call.operands))
            return (UnseenWhereDropped((mask,)),)
    if shown:
        raise CannotPack(f"the graph breaks off here, and Python may read all tokens of {source.name}")
    name = call.name if call is not None else reader.name
    raise CannotPack(
        f"{name} ({reader.name}) reads all tokens, those of the padding too: {reasons.get(reader, 'no reason known')}"
    )


def _only_shown(reader: Node) -> bool:
    """Whether a value goes to an output as it is, or as a slice of it, and nowhere else."""
    if reader.op == "output":
        return True
    call = call_of(reader)
    if call is None or call.in_place or call.name not in _SLICES:
        return False
    chosen = call.name == "getitem" and is_tensor(reader) and GetItem().index(call) is None  # tokens that matter
    return not chosen and all(map(_only_shown, reader.users))


def _chosen(call: Call, packing: Packing) -> Condition | None:
    """x[:, 0] or x[rows, columns]: tokens that somebody reads."""
    source: Any = call.node.args[0]
    label = packing.axes.of(source)
    if not packing.has_tokens(label):
        return None
    batch, sequence, merged = packing.place(label)
    if merged is not None or batch is None or sequence is None:
        return None
    entries = GetItem().index(call)
    if entries is not None:
        if None in entries or entries[batch] != slice(None):
            return None
        at = entries[sequence]
        if isinstance(at, slice) and at.step is None and all(isinstance(x, int | None) for x in (at.start, at.stop)):
            return KeptAt((at.start, at.stop)) if at != slice(None) else None
        return KeptAt(at) if isinstance(at, int) else None
    index: Any = call.node.args[1]
    if not isinstance(index, tuple) or (batch, sequence) != (0, 1) or len(index) != 2:
        return None
    nodes = tuple(each for each in index if isinstance(each, Node))
    if any(node in packing.descendants or not is_tensor(node) for node in nodes):
        return None
    # Each entry is of one dimension: neither "..." nor a mask of both.
    if any(node.meta["example_value"].dtype == torch.bool for node in nodes) or not all(map(_is_entry, index)):
        return None
    places = (
        (nodes.index(each),) if isinstance(each, Node) else None if each == slice(None) else each for each in index
    )
    return KeptWhere(nodes, tuple(places))


def _is_entry(entry: Any) -> bool:
    return isinstance(entry, Node) or entry == slice(None) or (isinstance(entry, int) and not isinstance(entry, bool))


def _zero(
    node: Node, call: Call | None, packing: Packing, zero: dict[Node, tuple[Condition, ...]]
) -> tuple[Condition, ...] | None:
    """Under which conditions a value is zero, in the dense graph, where tokens are left out; None if it is not."""
    if call is None:
        return None
    operands = call.operands
    if call.name == "mul" and len(operands) == 2:
        for operand, other in (operands, operands[::-1]):
            if operand in zero:
                return zero[operand]
            if other in packing.descendants or not packing.has_tokens(packing.axes.of(other)):
                continue
            batch, sequence, merged = packing.place(packing.axes.of(other))
            if merged is None and batch is not None and sequence is not None:
                return (ZeroWhereDropped((other,), (batch, sequence)),)
    if call.name in _KEEPS_ZERO and operands and operands[0] in zero:
        return zero[operands[0]]
    return None
