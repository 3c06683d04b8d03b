"""Attention of tokens to each other, and losses over tokens."""

from __future__ import annotations

from typing import Any

from torch.fx import Node

from gossamer.compile.conditions import IgnoredWhereDropped
from gossamer.compile.labels import Axes, Label
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
        if mask is None or call.get(5, "is_causal", False):
            raise CannotPack("attention without a mask says nothing about padding")
        if mask.meta["example_value"].dim() < 4:
            raise CannotPack("a mask that all texts share says nothing about padding")
        labels = [axes.of(each) for each in (q, k, v)]
        if any(len(label) != 4 or packer.rest(label) != [1, 3] for label in labels):
            raise CannotPack("attention that is not [batch, heads, tokens, width]")
        if mask in packer.descendants:
            raise CannotPack("the mask depends on what attention has computed")
        packed = packer.packed(q), packer.packed(k), packer.packed(v)
        return packer.attention(call.node, *packed, mask, call.get(6, "scale"), call.get(4, "dropout_p", 0.0))


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
        if reduction == "none" or call.get(2, "weight") is not None:
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
