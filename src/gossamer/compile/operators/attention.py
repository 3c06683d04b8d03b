"""Attention of tokens to each other, and losses over tokens."""

from __future__ import annotations

from typing import Any

from torch.fx import Node

from gossamer.compile.conditions import EverybodySees, IgnoredWhereDropped, SeesItself
from gossamer.compile.labels import Axes, Label, Size, same, shape_of
from gossamer.compile.operators.call import Call
from gossamer.compile.operators.operator import CannotPack, Names, Packer


class Attention:
    """scaled_dot_product_attention."""

    def label(self, call: Call, axes: Axes) -> Label:
        q, k, v = (axes.labels[each] for each in call.operands[:3])
        for query, key, value in list(zip(q, k, v, strict=True))[:-2]:
            axes.unify(query, key)
            axes.unify(key, value)
        axes.unify(k[-2], v[-2])
        axes.unify(q[-1], k[-1])
        return (*q[:-1], v[-1])

    def mask(self, call: Call) -> Node | None:
        return call.get(3, "attn_mask")

    def expression(self, call: Call, names: Names) -> str | None:
        """The product with the values, whose weights are zero where the mask hides a key."""
        q, v = names.axes.of(call.operands[0]), names.axes.of(call.operands[2])
        weights, y = names.keys("P", q[:-1]), names.of("Y", (*q[:-1], v[-1]))
        heads = names.of("", q[:-2])[1:-1]
        return f"{y} += {weights} * V[{heads},j,{names.along(v[-1])}]"

    def pack(self, call: Call, packer: Packer) -> Any:
        axes, mask = packer.axes, self.mask(call)
        q, k, v = call.operands[:3]
        if self._is_across(call, packer):
            scale, dropout = call.get(6, "scale"), call.get(4, "dropout_p", 0.0)
            return packer.across(packer.packed(q), k, v, mask, scale, dropout)
        if mask is None or call.get(5, "is_causal", False):
            raise CannotPack("attention without a mask says nothing about padding")
        if mask.meta["example_value"].dim() < 4:
            raise CannotPack("a mask that all texts share says nothing about padding")
        labels = [axes.of(each) for each in (q, k, v)]
        if any(len(label) != 4 or packer.place(label) != (0, 2, None) for label in labels):
            raise CannotPack("attention that is not [batch, heads, tokens, width]")
        check_mask(mask, *shapes(q, k, v))
        if mask in packer.descendants:
            raise CannotPack("the mask depends on what attention has computed")
        packed = packer.packed(q), packer.packed(k), packer.packed(v)
        packer.condition(EverybodySees((mask,)))
        packer.condition(SeesItself((mask,)))
        return packer.attention(call.node, *packed, mask, call.get(6, "scale"), call.get(4, "dropout_p", 0.0))

    def _is_across(self, call: Call, packer: Packer) -> bool:
        """Whether tokens read other texts of the same batch, of other lengths."""
        q, k, v = (packer.axes.of(each) for each in call.operands[:3])
        if call.get(5, "is_causal", False) or any(len(label) != 4 for label in (q, k, v)):
            return False
        if packer.place(q) != (0, 2, None):
            return False
        return all(packer.place(label) == (0, None, None) for label in (k, v))


def shapes(q: Node, k: Node, v: Node) -> tuple[tuple[Size, ...], tuple[Size, ...]]:
    """Those of q and k. Raises CannotPack where heads are shared in another way than in groups."""
    query, key, value = (shape_of(each) for each in (q, k, v))
    assert query is not None and key is not None and value is not None
    heads, shared = query[1], key[1]
    if not isinstance(heads, int) or not isinstance(shared, int) or not same(shared, value[1]) or heads % shared:
        raise CannotPack("attention whose keys and values have other heads than groups of its queries' heads")
    return query, key


def check_mask(mask: Node, query: tuple[Size, ...], key: tuple[Size, ...]) -> None:
    """Raises CannotPack where a mask does not say for each text, head, query and key what is seen."""
    given = shape_of(mask)
    if given is None or len(given) != 4:
        raise CannotPack("a mask that is not [batch or 1, heads or 1, queries or 1, keys]")
    for dim, (size, whole) in enumerate(zip(given, (*query[:3], key[2]), strict=True)):
        if not (same(size, whole) or (dim < 3 and same(size, 1))):
            raise CannotPack("a mask that is not [batch or 1, heads or 1, queries or 1, keys]")


class CrossEntropy:
    """cross_entropy over all tokens, of which those with the label `ignore_index` do not count."""

    def label(self, call: Call, axes: Axes) -> Label:
        shape = call.node.meta["example_value"].shape
        logits, target = (axes.labels[each] for each in call.operands[:2])
        if len(logits) == 2 and len(target) == 1:
            axes.unify(logits[0], target[0])
        return axes.fresh_label(tuple(shape))

    def expression(self, call: Call, names: Names) -> str | None:
        return None

    def pack(self, call: Call, packer: Packer) -> Any:
        logits, target = call.operands[:2]
        label = packer.axes.of(logits)
        reduction = call.get(6, "reduction", "mean")
        if len(label) != 2 or packer.rest(label) != [1] or len(packer.axes.of(target)) != 1:
            raise CannotPack("a loss that is not of [tokens, classes] and [tokens]")
        legacy = call.get(3, "size_average") is not None or call.get(5, "reduce") is not None
        if reduction == "none" or legacy or call.get(2, "weight") is not None:
            raise CannotPack("a loss with a value for each token, or weights of classes")
        args = list(call.node.args)
        kwargs = dict(call.node.kwargs)
        if target in packer.descendants:
            raise CannotPack("a loss whose labels depend on what attention has computed")
        # A label belongs to the row of logits at its place, whatever it was a view of.
        new = {logits: packer.packed(logits), target: packer.merged(target)}
        args = [new.get(each, each) if isinstance(each, Node) else each for each in args]
        kwargs = {name: new.get(each, each) if isinstance(each, Node) else each for name, each in kwargs.items()}
        packer.condition(IgnoredWhereDropped((target,), call.get(4, "ignore_index", -100)))
        return packer.emit(call.node, *args, **kwargs)
