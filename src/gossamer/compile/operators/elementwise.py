"""Operators that treat every element by itself, and broadcast."""

from __future__ import annotations

from typing import Any

from torch.fx import Node

from gossamer.compile.labels import Axes, Label, shape_of
from gossamer.compile.operators.call import Call, is_tensor
from gossamer.compile.operators.operator import Names, Packer

_WORDS = """
    add sub rsub mul div floor_divide pow rpow neg pos positive negative abs absolute exp exp2 expm1 log log1p log2
    log10 sqrt rsqrt
    square reciprocal sin cos tan sinh cosh tanh asin acos atan sigmoid logit erf erfc relu relu6 gelu silu
    mish elu celu selu leaky_relu hardtanh hardsigmoid hardswish softplus softsign logsigmoid tanhshrink hardshrink
    softshrink threshold clamp clamp_min clamp_max maximum minimum fmax fmin where masked_fill eq ne lt le gt ge and or
    xor not bitwise_and bitwise_or bitwise_xor bitwise_not logical_and logical_or logical_xor logical_not isnan isinf
    isfinite nan_to_num sign sgn floor ceil round trunc frac remainder fmod to float half bfloat16 double long int short
    bool type type_as contiguous clone detach dropout lerp addcmul addcdiv zeros_like ones_like full_like alias
"""
NAMES = frozenset(_WORDS.split())
KEEP_DTYPE_OF = frozenset({"to", "type_as"})
"""Calls whose second operand lends its dtype and device only."""


class Elementwise:
    def label(self, call: Call, axes: Axes) -> Label:
        shape = shape_of(call.node)
        assert shape is not None
        operands = call.operands[:1] if call.name in KEEP_DTYPE_OF else call.operands
        out: list[tuple[int, ...]] = [() for _ in shape]
        for operand in operands:
            label = axes.labels[operand]
            for at, dim in enumerate(label, len(shape) - len(label)):
                if not dim or at < 0:
                    continue
                if out[at]:
                    axes.unify(out[at], dim)
                else:
                    out[at] = dim
        return tuple(out)

    def expression(self, call: Call, names: Names) -> str | None:
        # A function of several operands at one place; which function is not said, so zeros are not looked for here.
        operands = call.operands
        if len(operands) != 1:
            return None
        return f"{names.of('Y', names.axes.of(call.node))} = {names.of('X', names.axes.of(operands[0]))}"

    def pack(self, call: Call, packer: Packer) -> Any:
        label = packer.axes.of(call.node)
        packer.rest(label)
        only_first = call.name in KEEP_DTYPE_OF

        def operand(at: int, value: Any) -> Any:
            if not isinstance(value, Node) or not is_tensor(value):
                return value
            return packer.like(value) if only_first and at else packer.operand(value, label)

        args = [operand(at, value) for at, value in enumerate(call.node.args)]
        kwargs = {name: operand(1, value) for name, value in call.node.kwargs.items()}
        return packer.emit(call.node, *args, **kwargs)
