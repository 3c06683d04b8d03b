"""Mixtures of experts that loop in Python, found by running a model: which modules they are, and how they are called.

for e, expert in enumerate(self.experts):                      for e, expert in enumerate(self.experts):
    rows, j = torch.where(ids == e)                                y = y + mask[:, e:e+1] * expert(x)
    y.index_add_(0, rows, expert(x[rows]) * w[rows, j, None])
"chosen": each expert gets its rows                            "masked": each gets all rows
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from gossamer.compile.mixtures.stacked import is_stacked


@dataclass(eq=False)
class Block:
    """A module that calls alike feed-forward networks beside a router.

    Attributes:
        name: path of `module` in the model.
        module: the one whose forward has the loop.
        experts: path below the module -> expert; none where they are one batched product.
        call: arguments of its first call on the example; None where it was not called.
        rows: of each call of an expert during that: which expert, its input, and what it gave.
    """

    name: str
    module: nn.Module
    experts: dict[str, nn.Module]
    call: tuple[tuple[Any, ...], dict[str, Any]] | None = None
    rows: list[tuple[nn.Module, Tensor, Any]] = field(default_factory=list)

    @property
    def kind(self) -> str:
        """ "masked", "chosen", "stacked", "" where it was not called, or what is wrong with calling them experts."""
        if self.call is not None and not self.experts:
            return "stacked"
        if self.call is None or not self.rows:
            return ""
        called = [expert for expert, _, _ in self.rows]
        first = self.rows[0][1]
        if len(called) > len(set(called)):
            return "an expert is called more than once"
        if len(called) == len(self.experts) and all(x is first for _, x, _ in self.rows):
            return "masked"
        made = {y.data_ptr() for _, _, y in self.rows if isinstance(y, Tensor) and y.numel()}
        if any(x.data_ptr() in made for _, x, _ in self.rows):
            return "they feed one another"
        return "chosen"


def blocks_of(model: nn.Module) -> list[Block]:
    """Every module with a list or dict of two or more alike networks, and beside them a weight with as many outputs."""
    found: list[Block] = []
    parents = {child: (path, parent) for path, parent in model.named_modules() for child in parent.children()}
    for path, module in model.named_modules():
        if is_stacked(module):
            found.append(Block(path, module, {}))
        if not isinstance(module, (nn.ModuleList, nn.ModuleDict)) or module not in parents:
            continue
        # A dropout may lie among them.
        experts = {name: each for name, each in module.named_children() if any(True for _ in each.parameters())}
        if len(experts) < 2 or not _alike(list(experts.values())):
            continue
        above, parent = parents[module]
        loops_itself = type(module).forward not in (nn.ModuleList.forward, nn.ModuleDict.forward)
        owner, name, prefix = (module, path, "") if loops_itself else (parent, above, path.rpartition(".")[2] + ".")
        if _has_router(parent, module, len(experts)):
            found.append(Block(name, owner, {prefix + each: expert for each, expert in experts.items()}))
    return found


def _alike(experts: list[nn.Module]) -> bool:
    """Of one class, with parameters of the same names, shapes and types, some of them matrices; no buffers."""

    def outline(expert: nn.Module) -> tuple[Any, ...]:
        return type(expert), *((name, p.shape, p.dtype, p.device) for name, p in expert.named_parameters())

    first = outline(experts[0])
    matrices = any(isinstance(module, nn.Linear) for module in experts[0].modules())
    return matrices and all(outline(e) == first and not any(True for _ in e.buffers()) for e in experts)


def _has_router(parent: nn.Module, experts: nn.Module, count: int) -> bool:
    theirs = {id(p) for p in experts.parameters()}
    return any(p.dim() == 2 and count in p.shape for p in parent.parameters() if id(p) not in theirs)


def watched(model: nn.Module, blocks: list[Block], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Run the model once and keep how each block, and each of its experts, is called."""
    open_: list[Block] = []
    hooks = []

    def enter(block: Block) -> Any:
        def pre(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if block.call is None:
                block.call = args, kwargs
                open_.append(block)

        return pre

    def leave(block: Block) -> Any:
        def post(module: nn.Module, args: tuple[Any, ...], out: Any) -> None:
            if block in open_:
                open_.remove(block)

        return post

    def see(block: Block) -> Any:
        def post(module: nn.Module, args: tuple[Any, ...], out: Any) -> None:
            if block in open_ and args and isinstance(args[0], Tensor):
                block.rows.append((module, args[0], out))

        return post

    try:
        for block in blocks:
            hooks.append(block.module.register_forward_pre_hook(enter(block), with_kwargs=True))
            hooks.append(block.module.register_forward_hook(leave(block)))
            hooks += [expert.register_forward_hook(see(block)) for expert in block.experts.values()]
        with torch.no_grad():
            model(*args, **kwargs)
    finally:
        for hook in hooks:
            hook.remove()


def linears(block: Block) -> Iterator[nn.Linear]:
    """The plain linear layers of its experts."""
    for expert in block.experts.values():
        yield from (module for module in expert.modules() if type(module) is nn.Linear)
