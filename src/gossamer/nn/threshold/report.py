"""What thresholds were put where, what they were expected to leave out, and what they did."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from textwrap import indent
from typing import Any

from torch import nn

from gossamer.nn.threshold.experts import ThresholdPoint
from gossamer.nn.threshold.gated_feed_forward import GatedFeedForward
from gossamer.nn.threshold.linear import ThresholdLinear


@dataclass(frozen=True)
class Row:
    """One place. `sparsity` is the share of inputs (or gates) at or below the threshold on the data; `bytes` are
    those of the weights behind it, `skippable` those that lie so that they can be left unread, of which decoding one
    token leaves out `saved`."""

    name: str
    threshold: float
    sparsity: float
    bytes: int
    skippable: int

    @property
    def saved(self) -> float:
        return self.sparsity * self.skippable


class ThresholdReport:
    """The result of `gs.nn.threshold`. `str(report)` is a table.

    Attributes:
        rows: one `Row` for each place with a threshold, in the order of the model.
        left: linears that stay dense -> why.
        unsaved: why the model's `save_pretrained` will not save the thresholds; None if it will, or is not there.
    """

    unsaved: str | None = None

    def __init__(
        self,
        rows: tuple[Row, ...],
        left: Mapping[str, str],
        modules: Mapping[str, nn.Module],
        undo: list[Callable[[], object]],
    ) -> None:
        self.rows = rows
        self.left = dict(left)
        self._modules = dict(modules)
        self._undo = undo

    @property
    def thresholds(self) -> dict[str, float]:
        """Name -> threshold: plain numbers to keep as JSON and give to `gs.nn.apply_thresholds`."""
        return {row.name: row.threshold for row in self.rows}

    @property
    def bytes(self) -> int:
        """Of all weights behind thresholds."""
        return sum(row.bytes for row in self.rows)

    @property
    def saved(self) -> float:
        """Bytes of weights that decoding one token is expected to leave out."""
        return sum(row.saved for row in self.rows)

    @property
    def sparsity(self) -> float:
        """The share of all those bytes whose inputs (or gates) lie at or below their thresholds."""
        return sum(row.sparsity * row.bytes for row in self.rows) / self.bytes

    def stats(self) -> dict[str, dict[str, float]]:
        """What decoding did: name -> {density, expected}, the share of inputs kept and 1 - the row's sparsity.

        Counted by the kernels, in calls with at most 8 rows and outside torch.compile; NaN where there was none.
        Reading it waits for a GPU.
        """
        return {
            row.name: {"density": self._module(row.name).density(), "expected": 1 - row.sparsity} for row in self.rows
        }

    def explain(self) -> str:
        """Which of skipping and dense each place takes when it decodes, why, and from which observations."""
        return "\n".join(f"{row.name}\n{indent(self._module(row.name).tuner.explain(), '  ')}" for row in self.rows)

    def undo_last(self, step: Callable[[], object]) -> None:
        """Let `undo` end with this step."""
        self._undo.insert(0, step)

    def undo(self) -> None:
        """Take the thresholds out again: the model is as it was before, in memory too.

        Doing it twice does nothing. Undo reports in the reverse order of making them.
        """
        while self._undo:
            self._undo.pop()()

    def _module(self, name: str) -> Any:
        module = self._modules[name]
        if not isinstance(module, (ThresholdLinear, GatedFeedForward, ThresholdPoint)):
            raise RuntimeError(f"{name!r} has no threshold any more: the report was undone")
        return module

    def __str__(self) -> str:
        width = max(len("name"), *(len(row.name) for row in self.rows))
        lines = [f"{'name':{width}}  {'threshold':>9}  {'sparsity':>8}  {'MiB':>8}  {'saved':>8}"]
        for row in self.rows:
            share = "?" if math.isnan(row.sparsity) else f"{row.sparsity:.1%}"
            saved = "?" if math.isnan(row.sparsity) else f"{row.saved / 2**20:.2f}"
            lines.append(f"{row.name:{width}}  {row.threshold:9.4g}  {share:>8}  {row.bytes / 2**20:8.2f}  {saved:>8}")
        if any(row.skippable < row.bytes for row in self.rows):
            lines.append(
                "weights stored by output channel are read whole: reorder=True stores them by input channel "
                "(the same parameters, other strides)"
            )
        lines += [self.unsaved] if self.unsaved else []
        lines += [f"{name} stays dense: {why}" for name, why in self.left.items()]
        return "\n".join(lines)
