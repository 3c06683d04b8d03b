"""group_experts: models that loop over their experts in Python run each for its own rows, and few rows faster.

A block is changed by its class, which becomes a subclass: parameters, their names and the state dict stay as they are,
copies are changed too, and `undo` gives the class back. Inside torch.compile the block's own loop runs.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from gossamer.compile.changed import Changed, Changes, Classes, become, changed_class, may_look
from gossamer.compile.finding import Finding
from gossamer.compile.mixtures.deferred import Deferred, deferring, is_deferring, settled
from gossamer.compile.mixtures.loops import Block, blocks_of, linears, watched
from gossamer.compile.mixtures.stacked import RowsThatAreNotZero
from gossamer.measure import interleave, is_faster
from gossamer.measure.count import call_arguments
from gossamer.ops.few_rows import FEW, few_rows_linear

EXPRESSION = "Y[t,o] += X[t,k] * W[k,o]"


class FewRowsLinear(nn.Linear):
    """nn.Linear whose products with a few rows on a CPU read the weight once, unpacked."""

    def forward(self, input: Tensor) -> Tensor:
        x = input
        if not may_look(x) or not _takes(x, self.weight):
            return super().forward(x)
        return few_rows_linear(x, self.weight, self.bias)


def _takes(x: Tensor, weight: Tensor) -> bool:
    return x.dim() == 2 and x.shape[0] <= FEW.get(x.dtype, 0) and x.is_cpu and x.dtype == weight.dtype


class _Expert(Changed):
    """Gives what waits while its block runs."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if len(args) == 1 and not kwargs and isinstance(args[0], Tensor) and is_deferring(self):
            return Deferred(lambda x: self.loop.forward(self, x), args[0])
        return self.loop.forward(self, *args, **kwargs)


class _Block(Changed):
    """Its experts run the rows that their masks keep; inside a graph, which could not hold how many, all of them."""

    paths: ClassVar[tuple[str, ...]]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        experts: list[nn.Module] = [self.get_submodule(path) for path in self.paths]  # type: ignore[attr-defined]
        hooked = any(each._forward_hooks or each._forward_pre_hooks for each in experts)
        if hooked or not may_look(*args, *kwargs.values()):
            return self.loop.forward(self, *args, **kwargs)
        with deferring(frozenset(map(id, experts))):
            return settled(self.loop.forward(self, *args, **kwargs))


def group_experts(model: nn.Module, example_inputs: Any, *, only_faster: bool = True) -> Changes:
    """Have blocks that loop over experts in Python compute what their router chose, and only that.

    Args:
        model: changed in place. A block is a list or dict of alike feed-forward networks beside a router, that is a
            weight with as many outputs. Where every expert gets every row and is masked afterwards, it will get the
            rows that its mask keeps; where most of these rows are zero and all experts are one batched product (Llama
            4), those that are not. Where experts get their own rows already, their linear layers multiply few rows by
            a kernel that reads a weight once.
        example_inputs: a tensor, a tuple of arguments or a dict of keyword arguments, run a few times.
        only_faster: change only what was measurably faster on the example.

    Returns:
        The findings; `undo()` takes everything back. A change was compared with the loop on the example: each output
        equal up to 8 * sqrt(width) roundings of its largest element.

    A row whose mask is exactly zero is left out, so its mask gets no gradient. Inside torch.compile loops run as they
    were written. Models of transformers with `set_experts_implementation` need none of this.

    >>> class Mixture(torch.nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.router = torch.nn.Linear(8, 4)
    ...         self.experts = torch.nn.ModuleList(torch.nn.Sequential(
    ...             torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 8)) for _ in range(4))
    ...     def forward(self, x):
    ...         gates, ids = self.router(x).softmax(-1).max(-1, keepdim=True)
    ...         mask, y = torch.zeros(len(x), 4).scatter(1, ids, gates), torch.zeros_like(x)
    ...         for e, expert in enumerate(self.experts):
    ...             y = y + mask[:, e:e+1] * expert(x)
    ...         return y
    >>> print(group_experts(Mixture(), torch.randn(32, 8), only_faster=False))
    the model: rows chosen. each of 4 experts runs the rows that its mask keeps
    """
    args, kwargs = call_arguments(example_inputs)
    blocks = blocks_of(model)
    watched(model, blocks, args, kwargs)
    report = Changes(())
    report.findings = tuple(_finding(block, report.changed, only_faster) for block in blocks)
    return report


def _finding(block: Block, changed: Classes, only_faster: bool) -> Finding:
    kind, gain = block.kind, None
    choice, why, mine = "dense", "", Classes()
    if kind == "masked":
        choice, why = "rows chosen", f"each of {len(block.experts)} experts runs the rows that its mask keeps"
        mine = _choose_rows(block)
    elif kind == "chosen":
        choice, why = "few rows", f"up to {FEW} rows are multiplied without packing an expert's weights"
        mine = _few_rows(block)
        if not mine:
            choice, why = "dense", "its experts have no plain linear layer in float32 or float64 on a CPU"
    elif kind == "stacked":
        choice, why = "rows that are not zero", "a row of zeros gives zeros, so each expert multiplies the others"
        mine = [(block.module, type(block.module))]
        block.module.__class__ = changed_class(RowsThatAreNotZero, mine[0][1])
    else:
        why = kind or "it was not called on the example"
    if mine:
        wrong, ratio = _tried(block, mine, only_faster)
        if wrong:
            become(mine)
            mine.clear()
            choice, why = "dense", wrong
        else:
            gain = None if ratio is None else (lambda: f"{ratio:.2f}x on the example")
        changed += mine
    return Finding(block.name or "the model", "experts", EXPRESSION, "routing" if mine else "",
                   ("t",) if choice != "dense" else (), choice, why, gain)  # fmt: skip


def _choose_rows(block: Block) -> Classes:
    changed = [(each, type(each)) for each in block.experts.values()] + [(block.module, type(block.module))]
    expert = changed_class(_Expert, changed[0][1])
    for each in block.experts.values():
        each.__class__ = expert
    block.module.__class__ = changed_class(_Block, changed[-1][1], paths=tuple(block.experts))
    return changed


def _few_rows(block: Block) -> Classes:
    taken = [each for each in linears(block) if each.weight.is_cpu and each.weight.dtype in FEW]
    for each in taken:
        each.__class__ = FewRowsLinear
    return [(each, nn.Linear) for each in taken]


def _tried(block: Block, changed: Classes, only_faster: bool) -> tuple[str, float | None]:
    """What is wrong with the change, if anything; and how much faster it is, if that was asked."""
    assert block.call is not None
    args, kwargs = block.call
    now = [(module, type(module)) for module, _ in changed]
    was = list(changed)

    def run(classes: Classes) -> Any:
        become(classes)
        with torch.no_grad():
            return block.module(*args, **kwargs)

    try:
        wrong = _difference(run(was), run(now), block)
        if wrong or not only_faster:
            return wrong, None
        row = interleave({"loop": lambda: run(was), "now": lambda: run(now)}, reps=7, seconds=20)
        if not is_faster(row["now"].ratio, row.control.ratio_q3, low=row["now"].ratio_q1):
            return f"the loop is as fast on the example ({row['now'].ratio:.2f}x)", None
        return "", row["now"].ratio
    finally:
        become(now)


def _difference(expected: Any, found: Any, block: Block) -> str:
    """Where two results differ by more than sums in another order would; empty if nowhere."""
    width = max(max(p.shape) for p in next(iter(block.experts.values()), block.module).parameters())
    one, two = pytree.tree_leaves(expected), pytree.tree_leaves(found)
    if len(one) != len(two):
        return f"it gives {len(two)} results, and the loop {len(one)}"
    for a, b in zip(one, two, strict=True):
        if not isinstance(a, Tensor):
            continue
        if a.shape != b.shape or a.dtype != b.dtype:
            return f"it gives {b.dtype}{list(b.shape)}, and the loop {a.dtype}{list(a.shape)}"
        if not a.is_floating_point():
            if not torch.equal(a, b):
                return "its integers differ from the loop's"
            continue
        largest = float(a.abs().max()) if a.numel() else 0.0
        allowed = 8 * math.sqrt(width) * torch.finfo(a.dtype).eps * largest
        worst = float((a - b).abs().max()) if a.numel() else 0.0
        if not worst <= allowed:
            return f"it differs from the loop by {worst:.3g}, and rounding by {allowed:.3g} at most"
    return ""
