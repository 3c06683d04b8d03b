"""What a profile found, and how it is shown: a table for a terminal, JSON, a page."""

from __future__ import annotations

import math
import os
import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from gossamer import files
from gossamer.report.boxes import Box, boxes
from gossamer.report.curves import Line, chart
from gossamer.report.document import document
from gossamer.report.markup import Markup, tag
from gossamer.report.quantity import percent
from gossamer.routing.profiling.values import Spread, Values
from gossamer.routing.stack import Kind

Measure = Literal["influence", "contribution"]

THRESHOLDS = tuple(percent / 100 for percent in range(0, 51))
NAMES = {"block": "block", "attention": "attention", "mlp": "MLP"}
_STYLES = {"block": "compact", "attention": "sparse", "mlp": "dense"}


@dataclass(frozen=True, eq=False)
class Profile:
    """How much each layer of a model contributes to the states of tokens; `profile` makes it.

    Attributes:
        model: the class of the model. tokens: how many were looked at, padding left out.
        contribution: for "block", "attention" and "mlp" and each layer how ||f(h)|| / ||h + f(h)|| is distributed over
            tokens: the share that its work has in the state after it.
        growth: the same for ||f(h)|| / ||h||, the share against the state before it.
        influence: for each layer its block influence 1 - mean cos(h, h + f(h)).
        values: what `sparsity` counts.
    """

    model: str
    tokens: int
    contribution: Mapping[Kind, tuple[Spread, ...]]
    growth: Mapping[Kind, tuple[Spread, ...]]
    influence: tuple[float, ...]
    values: Mapping[Kind, tuple[Values, ...]]

    @property
    def layers(self) -> int:
        return len(self.influence)

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """What was measured of each layer."""
        return tuple(self.contribution)

    @property
    def exact(self) -> bool:
        """Whether quantiles are those of the numbers; else they are up to 0.4 % too large."""
        return all(each.exact for each in self.values["block"])

    def order(self, by: Measure = "influence") -> list[int]:
        """The layers, first the one that contributes least: by block influence, or by the median contribution."""
        if by not in get_args(Measure):
            raise ValueError(f"by must be {' or '.join(get_args(Measure))}, got {by!r}")
        numbers = self.influence if by == "influence" else [each.median for each in self.contribution["block"]]
        return sorted(range(self.layers), key=lambda at: numbers[at])

    def sparsity(self, threshold: float, kind: Kind = "block") -> float:
        """The share of pairs (token, layer) whose contribution is at most `threshold`.

        Raises:
            ValueError: a negative threshold, or a kind that was not measured.
        """
        each = self.below(threshold, kind)
        return sum(each) / len(each)

    def typical(self, kind: Kind = "block") -> float:
        """The median over layers of what each contributes to the median token."""
        return statistics.median(each.median for each in self.contribution[kind])

    def below(self, threshold: float, kind: Kind = "block") -> list[float]:
        """For each layer the share of tokens to which it contributes at most `threshold`; raises as `sparsity`."""
        if kind not in self.kinds:
            raise ValueError(f"kind must be one of {', '.join(self.kinds)}, got {kind!r}")
        if not threshold >= 0:
            raise ValueError(f"threshold must be a share of at least 0, got {threshold!r}")
        return [values.share(threshold) for values in self.values[kind]]

    def __str__(self) -> str:
        head = f"{'layer':>5}" + "".join(f"  {NAMES[kind]:>9}  {'quartiles':>13}" for kind in self.kinds)
        lines = [
            f"{self.model}, {self.layers} layers, {self.tokens:,} tokens: ||f(h)|| / ||h + f(h)|| in percent, median",
            head + f"  {'largest':>9}  {'influence':>9}",
        ]
        for at in range(self.layers):
            cells = ""
            for kind in self.kinds:
                spread = self.contribution[kind][at]
                quartiles = f"{_short(spread.q1)} .. {_short(spread.q3)}"
                cells += f"  {_short(spread.median):>9}  {quartiles:>13}"
            most = _short(self.contribution["block"][at].most)
            lines.append(f"{at:>5}{cells}  {most:>9}  {self.influence[at]:>9.4f}")
        shares = ", ".join(f"{100 * self.sparsity(t):.1f} % up to {100 * t:g} %" for t in (0.05, 0.1, 0.2))
        first = ", ".join(map(str, self.order()[:8]))
        lines += [
            f"pairs of token and layer: {shares}",
            f"least influence first: {first}" + (", ..." if self.layers > 8 else ""),
        ]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Plain data; numbers that are not finite are None."""
        spreads = {
            name: {kind: [_plain(each) for each in some] for kind, some in found.items()}
            for name, found in (("contribution", self.contribution), ("growth", self.growth))
        }
        curve = {kind: [self.sparsity(t, kind) for t in THRESHOLDS] for kind in self.kinds}
        return {
            "model": self.model, "layers": self.layers, "tokens": self.tokens, "exact": self.exact,
            "influence": list(self.influence), "order": self.order(), **spreads,
            "sparsity": {"threshold": list(THRESHOLDS), **curve},
        }  # fmt: skip

    def to_json(self, path: str | os.PathLike[str]) -> None:
        """Write `to_dict` to a file, whole or not at all."""
        files.write_json(path, self.to_dict())

    def to_html(self, path: str | os.PathLike[str], *, source: str = "") -> None:
        """Write one page without outside resources, whole or not at all; `source` says what was read by what."""
        content = document(f"Layers of {self.model}", self._page(source)).encode()
        with files.replacing(path) as file:
            file.write(content)

    def _page(self, source: str) -> Markup:
        figures = [tag("figure", tag("h3", _title(kind)), self._boxes(kind)) for kind in self.kinds]
        influence = tag("h3", "Block influence, 1 \N{MINUS SIGN} mean cos(h, h + f(h))")
        figures.append(tag("figure", influence, self._influence()))
        precision = "" if self.exact else " Quantiles are up to 0.4 % of their value too large."
        return tag(
            "main",
            tag("p", "Gossamer profile of a model", class_="eyebrow"),
            tag("h1", f"What the {self.layers} layers of {self.model} contribute"),
            tag("p", f"{self.tokens:,} tokens. {source}{precision}", class_="lede"),
            tag("h2", "Contribution to the state"),
            tag("p", "‖f(h)‖ / ‖h + f(h)‖: the share that a layer's work has in the state of a token after it. A mark "
                "at the median of all tokens, a bar over the quartiles, a line from 5 to 95 %.", class_="quiet"),
            tag("div", figures, class_="pair"),
            tag("h2", "What could be left out"),
            tag("p", "Block influence says how far a layer turns the state. Least influence first: "
                f"{', '.join(map(str, self.order()))}.", class_="quiet"),
            tag("div", tag("figure", tag("h3", "Pairs of token and layer that contribute no more"), self._sparsity()),
                tag("figure", tag("h3", "Layers that contribute more to a token, in the mean"), self._depth()),
                class_="pair"),
            tag("h2", "All layers"),
            self._table(),
            tag("footer", "Written by Gossamer."),
        )  # fmt: skip

    def _boxes(self, kind: Kind) -> Markup:
        entries = [Box(each.low, each.q1, each.median, each.q3, each.high) for each in self.contribution[kind]]
        title = f"Contribution of each layer's {NAMES[kind]}"
        return boxes(entries, title=title, x_label="layer", mark=lambda v: percent(v, 0), style=_STYLES[kind])

    def _depth(self) -> Markup:
        head = tag("tr", [tag("th", each, scope="col") for each in ("Than", *map(_title, self.kinds))])
        rows = []
        for threshold in (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5):
            depths = [self.layers * (1 - self.sparsity(threshold, kind)) for kind in self.kinds]
            cells = [tag("td", f"{depth:.1f}") for depth in depths]
            rows.append(tag("tr", tag("th", percent(threshold, 0), scope="row"), cells))
        return tag("div", tag("table", tag("thead", head), tag("tbody", rows)), class_="scroll")

    def _sparsity(self) -> Markup:
        lines = [
            Line(NAMES[kind], _STYLES[kind], [(100 * t, self.sparsity(t, kind)) for t in THRESHOLDS])
            for kind in self.kinds
        ]
        return chart(
            lines, title="Share of pairs of token and layer by threshold", x_label="contribution up to, in %",
            show=percent, mark=lambda v: percent(v, 0), floor=0.0, ceiling=1.0,
        )  # fmt: skip

    def _influence(self) -> Markup:
        points = [(float(at), each) for at, each in enumerate(self.influence)]
        return chart(
            [Line("last layer", "compact", points)], title="Block influence of each layer", x_label="layer",
            show=lambda v: f"{v:.3f}", mark=lambda v: f"{v:.2g}", floor=0.0,
        )  # fmt: skip

    def _table(self) -> Markup:
        names = [(_title(kind), "quartiles") for kind in self.kinds]
        head = tag(
            "tr", [tag("th", each, scope="col") for each in ("Layer", *sum(names, ()), "Largest of block", "Influence")]
        )
        rows = []
        for at in range(self.layers):
            cells = []
            for kind in self.kinds:
                spread = self.contribution[kind][at]
                cells.append(tag("td", percent(spread.median)))
                cells.append(tag("td", f"{percent(spread.q1)} .. {percent(spread.q3)}"))
            cells.append(tag("td", percent(self.contribution["block"][at].most)))
            cells.append(tag("td", f"{self.influence[at]:.4f}"))
            rows.append(tag("tr", tag("th", at, scope="row"), cells))
        return tag("div", tag("table", tag("thead", head), tag("tbody", rows)), class_="scroll")


def _title(kind: Kind) -> str:
    return NAMES[kind][0].upper() + NAMES[kind][1:]


def _short(share: float) -> str:
    """Percent, without the sign."""
    return f"{100 * share:.1f}" if math.isfinite(share) else "inf"


def _plain(spread: Spread) -> dict[str, float | None]:
    return {name: value if math.isfinite(value) else None for name, value in asdict(spread).items()}
