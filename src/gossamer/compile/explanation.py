"""`gs.compile.explain`: what the compiler sees in a model, operator by operator."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

from gossamer.compile.advice import advice
from gossamer.compile.backend import compiled
from gossamer.compile.options import options_of
from gossamer.compile.record import Record, observers

_HEAD = ("node", "operator", "computes", "work", "zeros", "skips", "choice", "why, or what was measured")


@dataclass(frozen=True)
class Explanation:
    """What became of a model.

    Attributes:
        records: one for each graph, in the order in which they were compiled.
        breaks: why Dynamo cut the model into several graphs, and at which line: one for each line.
        advice: what to call first, and why, if that is known.
    """

    records: tuple[Record, ...]
    breaks: tuple[tuple[str, str], ...]
    advice: str = ""

    def __str__(self) -> str:
        lines: list[str] = []
        for number, record in enumerate(self.records, 1):
            lines.append(f"graph {number} of {len(self.records)}: {record.tally}")
            if record.tally.refused:
                lines.append(f"  padding stays: {record.tally.refused}")
            total = sum(found.work for found in record.findings)
            gains = [found.gain() if found.gain else found.why for found in record.findings]
            shares = [gain if isinstance(gain, float) else 0.0 for gain in gains]
            saved = sum(found.work * share for found, share in zip(record.findings, shares, strict=True))
            if saved:
                lines.append(
                    f"  {saved / total:.0%} of {total / 1e9:.3g} G multiply-adds left out: at most "
                    f"{total / (total - saved):.2f}x as fast"
                )
            rows: list[tuple[str, ...]] = [
                (
                    f.node, f.operator, f.expression, f"{f.work / total:.0%}" if f.work else "", f.zeros,
                    " ".join(f.axes), f.choice, gain if isinstance(gain, str) else f"{gain:.0%} of it left out",
                )
                for f, gain in zip(record.findings, gains, strict=True)
            ]  # fmt: skip
            lines += _table(_HEAD, rows)
        lines += [f"graph break at {where}: {why}" for why, where in self.breaks]
        if self.advice:
            lines.append(self.advice)
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
        TypeError: an example of another kind. ValueError, TypeError: options that are not known. RuntimeError: Dynamo
        ends in an error, and it is known what to change first.

    >>> text = str(explain(torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.GELU()), torch.ones(2, 4)))
    >>> print(text.splitlines()[1].strip())
    padding stays: no attention with a mask, which would say where the padding is
    """
    wanted = options_of(options)
    args, kwargs = _inputs(example)
    records: list[Record] = []

    def backend(gm: GraphModule, inputs: list[Any]) -> Any:
        return compiled(gm, inputs, wanted, compiler=lambda piece, _: piece)

    from torch._dynamo.utils import graph_break_reasons

    before, first = len(graph_break_reasons), advice(model)
    observers.append(records.append)
    try:
        with torch.no_grad():
            torch.compile(model, backend=backend)(*args, **kwargs)
    except Exception as error:
        if not first:
            raise
        raise RuntimeError(f"the model could not be compiled: {first}") from error
    finally:
        observers.remove(records.append)
    return Explanation(tuple(records), _breaks(graph_break_reasons[before:]), first)


def _breaks(reasons: Iterable[Any]) -> tuple[tuple[str, str], ...]:
    """Why and where, each line once: Dynamo meets one in a function that it inlines again when that runs by itself."""
    found = {}
    for each in reasons:
        place = each.user_stack[-1] if each.user_stack else None
        where = "an unknown line" if place is None else f"{place.filename}:{place.lineno}"
        why = each.reason.strip().splitlines()[0]
        found[where] = "Python branches on what a tensor holds" if why.startswith("generic_jump") else why, where
    return tuple(found.values())


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
