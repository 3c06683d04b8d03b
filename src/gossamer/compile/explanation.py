"""`gs.compile.explain`: what the compiler sees in a model, operator by operator."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

from gossamer.compile.backend import compiled
from gossamer.compile.options import options_of
from gossamer.compile.record import Record, observers

_HEAD = ("node", "operator", "computes", "work", "zeros", "skips", "choice", "why, or what was measured")


@dataclass(frozen=True)
class Explanation:
    """What became of a model.

    Attributes:
        records: one for each graph, in the order in which they were compiled.
        breaks: why Dynamo cut the model into several graphs, and how often.
    """

    records: tuple[Record, ...]
    breaks: tuple[tuple[str, int], ...]

    def __str__(self) -> str:
        lines: list[str] = []
        for number, record in enumerate(self.records, 1):
            lines.append(f"graph {number} of {len(self.records)}: {record.tally}")
            if record.tally.refused:
                lines.append(f"  padding stays: {record.tally.refused}")
            total = sum(found.work for found in record.findings)
            saved = sum(found.work * found.saves() for found in record.findings if found.saves is not None)
            if saved:
                lines.append(
                    f"  {saved / total:.0%} of {total / 1e9:.3g} G multiply-adds left out: at most "
                    f"{total / (total - saved):.2f}x as fast"
                )
            rows: list[tuple[str, ...]] = [
                (
                    f.node, f.operator, f.expression, f"{f.work / total:.0%}" if f.work else "", f.zeros,
                    " ".join(f.axes), f.choice, f.gain() if f.gain else f.why,
                )
                for f in record.findings
            ]  # fmt: skip
            lines += _table(_HEAD, rows)
        for why, count in self.breaks:
            lines.append(f"graph break ({count} times): {why.strip().splitlines()[0]}")
        if not self.records:
            lines.append("Dynamo found no graph in this model")
        return "\n".join(lines)


def explain(model: Callable[..., Any], example: Any, *, options: Mapping[str, Any] | None = None) -> Explanation:
    """Compile a model for an example, run it once on it, and say what may be left out of each operator and what is.

    Nothing is handed to inductor, so this takes about a second; the model and its compiled versions stay as they are.

    Args:
        model: a module or a function.
        example: its inputs: a tensor, a tuple of arguments, or a mapping of keyword arguments (such as a tokenizer's).
        options: as in `torch.compile(backend="gossamer", options=...)`.

    Returns:
        `Explanation`; print it.

    Raises:
        TypeError: an example of another kind. ValueError, TypeError: options that are not known.

    >>> text = str(explain(torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.GELU()), torch.ones(2, 4)))
    >>> print(text.splitlines()[1].strip())
    padding stays: no attention with a mask, which would say where the padding is
    """
    wanted = options_of(options)
    args, kwargs = _inputs(example)
    records: list[Record] = []

    def backend(gm: GraphModule, inputs: list[Any]) -> Any:
        return compiled(gm, inputs, wanted, compiler=lambda piece, _: piece)

    from torch._dynamo.utils import counters

    before = Counter(counters["graph_break"])
    observers.append(records.append)
    try:
        with torch.no_grad():
            torch.compile(model, backend=backend)(*args, **kwargs)
    finally:
        observers.remove(records.append)
    breaks = Counter(counters["graph_break"]) - before
    return Explanation(tuple(records), tuple(breaks.items()))


def _inputs(example: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(example, Tensor):
        return (example,), {}
    if isinstance(example, tuple):
        return example, {}
    if isinstance(example, Mapping):
        return (), dict(example)
    raise TypeError(
        f"example must be a tensor, a tuple of arguments or a mapping of them, got {type(example).__name__}"
    )


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    if not rows:
        return []
    widths = [max(len(row[at]) for row in (head, *rows)) for at in range(len(head) - 1)]
    return [
        "  " + "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1]])
        for row in (head, *rows)
    ]
