"""Ops that write into an argument, `Tensor(a!)` in the schema: a page appended to a pool, a fused optimizer step.

Dispatch goes through two guards before a kernel runs:

    gradients    none exists for a tensor that was overwritten, so an operand that asks for one is refused
    versions     every written tensor counts as changed: a backward pass that saved it says so instead of using it

torch.compile reads the schema and keeps writes and reads in order. Results are new tensors, never an argument.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Writes(NamedTuple):
    """What the schema of an op says about its arguments, in order."""

    op: str
    arguments: tuple[str, ...]
    written: tuple[int, ...]

    @property
    def names(self) -> str:
        return ", ".join(self.arguments[at] for at in self.written)


def writes_of(op: torch._ops.OpOverload) -> Writes:
    schema = op._schema
    if any(result.alias_info is not None for result in schema.returns):
        raise ValueError(f"{op.name()} must return new tensors or (): no graph can hold a result that is an argument")
    written = (at for at, arg in enumerate(schema.arguments) if arg.alias_info is not None and arg.alias_info.is_write)
    return Writes(op._opname, tuple(argument.name for argument in schema.arguments), tuple(written))


def refuse_gradients(writes: Writes, args: tuple[Any, ...]) -> None:
    """Refuse operands that ask for a gradient, of an op that writes."""
    if not torch.is_grad_enabled():
        return
    for name, arg in zip(writes.arguments, args, strict=False):
        for x in tensors_of(arg):
            if x.requires_grad:
                raise RuntimeError(
                    f"gossamer.ops.{writes.op} writes {writes.names} in place and has no gradient, but {name} requires "
                    "one: detach it, or call under torch.no_grad()"
                )


def guard(library: torch.library.Library, op: torch._ops.OpOverload, writes: Writes) -> None:
    """Put both guards before the kernels of an op."""

    def gradients(keys: Any, *args: Any) -> Any:
        refuse_gradients(writes, args)
        with torch._C._AutoDispatchBelowAutograd():
            return op.redispatch(keys & torch._C._after_autograd_keyset, *args)

    def versions(keys: Any, *args: Any) -> Any:
        for at in writes.written:
            torch.autograd.graph.increment_version(tensors_of(args[at]))
        return op.redispatch(keys & torch._C._after_ADInplaceOrView_keyset, *args)

    library.impl(writes.op, gradients, "Autograd", with_keyset=True)
    library.impl(writes.op, versions, "ADInplaceOrView", with_keyset=True)


def tensors_of(arg: Any) -> Iterator[Tensor]:
    """The tensors of one argument: itself, those of a list, or none."""
    for each in arg if isinstance(arg, (list, tuple)) else (arg,):
        if isinstance(each, Tensor):
            yield each
