"""Compile a piece of a graph with inductor when it is first called, for sizes that may change.

    piece = Piece(gm, sizes)         sizes[i]: for each dimension of input i a number, or the name of a size
    outputs = piece(*inputs)

Pieces share names: tokens are "T" in all inputs of a piece, so that inductor knows one size where there is one. What
inductor assumes about sizes is checked before each call; a call that breaks it makes another variant.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import CodeType
from typing import Any

import torch
from torch import Tensor
from torch._dynamo.source import ConstantSource
from torch._guards import TracingContext, tracing
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import GraphModule
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext
from torch.utils._sympy.printers import PythonPrinter

from gossamer.compile.tally import Tally
from gossamer.ops.attention.arguments import once

Sizes = Sequence[Any]
"""For each input: a tuple of numbers and names, a name for a size that is an input itself, None for the rest."""
Compiler = Callable[[GraphModule, list[Any]], Callable[..., Any]]
MOST = 4
"""Variants of one piece, before it runs uncompiled."""


def inductor(gm: GraphModule, inputs: list[Any], config: Mapping[str, Any] | None = None) -> Callable[..., Any]:
    from torch._inductor.compile_fx import compile_fx

    compiled: Any = compile_fx(gm, inputs, config_patches=None if config is None else dict(config))
    return compiled


@dataclass
class _Variant:
    run: Callable[..., Any]
    fits: Callable[[dict[str, int]], bool]
    key: tuple[Any, ...]


class Piece:
    """A graph that is compiled for what it is called with.

    Args:
        gm: returns a tuple; writes into none of its inputs.
        sizes: of its inputs, see above.
        compiler: what compiles it, such as `inductor`. tally: counts how often.
    """

    def __init__(self, gm: GraphModule, sizes: Sizes, compiler: Compiler, tally: Tally) -> None:
        self.gm, self.sizes, self.compiler, self.tally = gm, tuple(sizes), compiler, tally
        self.variants: list[_Variant] = []

    def __call__(self, *inputs: Any) -> Any:
        # One order in memory, whatever comes: strides would be one more thing to compile for.
        inputs = tuple(
            _in_order(x)
            if isinstance(x, Tensor) and sizes is not None and any(isinstance(s, str) for s in sizes)
            else x
            for x, sizes in zip(inputs, self.sizes, strict=True)
        )
        named = self._named(inputs)
        key = _key(inputs)
        for variant in self.variants:
            if variant.key == key and variant.fits(named):
                return variant.run(*inputs)
        if len(self.variants) >= MOST or any(size < 2 for size in named.values()):
            return self.gm(*inputs)  # torch's compiler takes sizes of 0 and 1 for numbers
        made = self._compiled(inputs, key)
        self.variants.append(made)  # threads may have added others
        self.tally.compilations += 1
        return made.run(*inputs)

    def _named(self, inputs: Sequence[Any]) -> dict[str, int]:
        named: dict[str, int] = {}
        for value, sizes in zip(inputs, self.sizes, strict=True):
            if isinstance(sizes, str):
                named[sizes] = int(value)
            elif sizes is not None:
                for size, name in zip(value.shape, sizes, strict=True):
                    if isinstance(name, str):
                        named[name] = size
        return named

    def _compiled(self, inputs: Sequence[Any], key: tuple[Any, ...]) -> _Variant:
        env = ShapeEnv()
        mode = FakeTensorMode(shape_env=env)
        symbols: dict[str, Any] = {}
        names: dict[str, str] = {}
        fakes: list[Any] = []
        for value, sizes in zip(inputs, self.sizes, strict=True):
            if not isinstance(value, Tensor):
                fakes.append(value)
                continue
            dynamic = [DimDynamic.DYNAMIC if isinstance(size, str) else DimDynamic.STATIC for size in sizes]
            fake = mode.from_tensor(
                value, static_shapes=False, symbolic_context=StatelessSymbolicContext(dynamic_sizes=dynamic)
            )
            for size, name in zip(fake.shape, sizes, strict=True):
                if isinstance(name, str) and isinstance(size, torch.SymInt):
                    names[str(size.node._expr)] = name
                    if name in symbols:
                        assert bool(size == symbols[name])
                    symbols.setdefault(name, size)
            fakes.append(fake)
        for at, (value, sizes) in enumerate(zip(inputs, self.sizes, strict=True)):
            if isinstance(sizes, str):
                if sizes not in symbols:
                    symbols[sizes] = env.create_unspecified_symint_and_symbol(
                        value, ConstantSource(f"size_{at}"), DimDynamic.DYNAMIC
                    )
                    names[str(symbols[sizes].node._expr)] = sizes
                fakes[at] = symbols[sizes]
        gm = GraphModule(self.gm, self.gm.graph)  # the compiler may change what it is given
        with tracing(TracingContext(mode)):
            run = self.compiler(gm, fakes)
        return _Variant(run, lambda named: _holds(env, names, named), key)


def _in_order(x: Tensor) -> Tensor:
    """x contiguous, but for dimensions that repeat what is there once, as an expanded mask does: they stay views."""
    return x.contiguous() if 0 not in x.stride() else once(x).contiguous().expand(x.shape)


def _key(inputs: Sequence[Any]) -> tuple[Any, ...]:
    """What a compiled piece takes for granted beside sizes: gradients, dtypes, devices and what repeats."""
    return (
        torch.is_grad_enabled(),
        *(
            (x.dtype, x.device, x.requires_grad, tuple(step == 0 for step in x.stride()))
            if isinstance(x, Tensor)
            else None
            if type(x) is int
            else x
            for x in inputs
        ),
    )


def _holds(env: ShapeEnv, names: dict[str, str], named: dict[str, int]) -> bool:
    """Whether every assumption of a compilation holds for these sizes. A backward pass may have added some since."""
    values = {symbol: named[name] for symbol, name in names.items()}
    return all(eval(_code(guard.expr), {"math": math}, values) for guard in env.guards)


@functools.cache
def _code(expression: Any) -> CodeType:
    """A sympy expression of sizes, which torch made, as Python."""
    return compile(PythonPrinter().doprint(expression), "<sizes>", "eval")
