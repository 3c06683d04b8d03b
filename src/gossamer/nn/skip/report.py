"""What `skip_zeros` did to a model, and what that has brought so far."""

from __future__ import annotations

from collections.abc import Mapping
from textwrap import indent
from typing import Any

from torch import nn

FEW_ZEROS = 0.05
"""Share of zeros below which an operand is never skipped."""
_PASSES = {"forward": "forward", "input": "by input", "weight": "by weight"}


class SkipReport:
    """Which layers skip zeros, which do not and why, and what their sites have seen.

    Attributes:
        converted: names of the layers that can skip.
        fused: names of the ReLUs that are now part of the layer before them.
        left: name -> reason, for the layers that stay torch's.
        apart: how many parameters are in fused experts, in words; empty without any.
        zeros: name -> share of zeros in what a layer read on the example; {} without one.

    `str(report)` is a table: per layer the share of zeros in its input x and in the gradient dy of its output, the
    algorithm of each pass and how many times faster than dense it is, and the seconds saved so far.
    """

    def __init__(
        self,
        converted: Mapping[str, nn.Module],
        fused: tuple[str, ...],
        left: Mapping[str, str],
        zeros: Mapping[str, float] | None = None,
        apart: str = "",
    ) -> None:
        self.apart = apart
        self.zeros = dict(zeros or {})
        self.fused = fused
        self.left = dict(left)
        self._modules = dict(converted)

    @property
    def converted(self) -> tuple[str, ...]:
        return tuple(self._modules)

    def stats(self) -> dict[str, dict[str, Any]]:
        """Name -> pass ("forward", "input", "weight") -> see `gossamer.planner.Site.stats`.

        A layer whose calls went to torch's own operator has an entry "refused" too: the reasons, each once.
        """
        out: dict[str, dict[str, Any]] = {}
        for name, module in self._modules.items():
            site: Any = module.site
            out[name] = site.stats()
            if site.refused:
                out[name]["refused"] = site.refused
        return out

    def explain(self) -> str:
        """What each layer's passes take, why, and from which observations: see `gossamer.planner.Tuner.explain`."""
        sites: dict[str, Any] = {name or "(the model)": module.site for name, module in self._modules.items()}
        return "\n".join(f"{name}\n{indent(site.explain(), '  ')}" for name, site in sites.items())

    @property
    def saved(self) -> float:
        """Seconds saved so far by all layers; negative if the trials have cost more than skipping has brought."""
        passes = [site[name] for site in self.stats().values() for name in _PASSES if name in site]
        return sum(each["saved"] for each in passes)

    def summary(self) -> str:
        """One line: how many layers can skip zeros, and whether they meet any."""
        layers = len(self._modules) + len(self.left)
        text = f"{len(self._modules)} of {layers} layers can skip zeros"
        text += f", {len(self.fused)} with the ReLU after them" if self.fused else ""
        text += f" ({self.apart})" if self.apart else ""
        return f"{text}; {self.verdict()}" if self._modules else text

    def verdict(self) -> str:
        """Whether there is something to gain, by the zeros that were met: on the model's own calls, or the example."""
        stats = self.stats()
        met = {name: self._met(name, stats[name]) for name in self._modules}
        known = {name: shares for name, shares in met.items() if shares}
        if not known:
            return "how many they meet is not known before the model has run: give example_inputs, or ask again then"
        useful = {name: shares for name, shares in known.items() if max(shares.values()) >= FEW_ZEROS}
        if not useful:
            most = max(max(shares.values()) for shares in known.values())
            found = f"no layer of the {len(known)} that ran reads more than {most:.0%} zeros"
            unseen = "" if any("dy" in shares for shares in known.values()) else " (gradients were not seen)"
            return f"{found}, so nothing is gained here{unseen}; gs.nn.threshold may, with inputs that are small"
        ran = [name for name in useful if any(each in stats[name] for each in _PASSES)]
        skipping = [
            name for name in ran if any(stats[name][each]["path"] != "dense" for each in _PASSES if each in stats[name])
        ]
        text = f"{len(useful)} of the {len(known)} that ran meet zeros"
        return (
            f"{text}, {len(skipping)} of them skip now"
            if ran
            else f"{text}; which of them skip is tried on later calls"
        )

    def _met(self, name: str, passes: Mapping[str, Any]) -> dict[str, float]:
        """The share of zeros in x and dy of a layer, as far as known."""
        met = {"x": self.zeros[name]} if name in self.zeros else {}
        for each in _PASSES:
            met |= {operand: 1.0 - share for operand, share in passes.get(each, {}).get("density", {}).items()}
        return met

    def _why_dense(self, name: str, passes: Mapping[str, Any]) -> str | None:
        """Why a layer that reads zeros multiplies them nevertheless in its forward pass; None if that is not so."""
        forward = passes.get("forward")
        if self._met(name, passes).get("x", 0.0) < FEW_ZEROS or (forward and forward["path"] != "dense"):
            return None
        if passes.get("refused"):
            return ", ".join(passes["refused"])
        if forward is None:
            return None
        site: Any = self._modules[name].site
        return str(site.explain()).partition("\n")[0].removeprefix("forward: dense, ")

    def __repr__(self) -> str:
        return f"<SkipReport: {self.summary()}>"

    def __str__(self) -> str:
        lines, stats = [self.summary()], self.stats()
        if self._modules:
            head = ["layer", "zeros of x", "of dy", *_PASSES.values(), "saved"]
            rows = [
                head,
                *(_row(name or "(the model)", stats[name], self._met(name, stats[name])) for name in self._modules),
            ]
            if len(self._modules) > 1 and any(stats.values()):
                rows.append(["all", "", "", *(_time(self._saved(stats, name)) for name in _PASSES), _time(self.saved)])
            lines += ["", *_table(rows)]
        dense = [[name, why] for name in self._modules if (why := self._why_dense(name, stats[name])) is not None]
        if dense:
            lines += [
                "",
                "dense in spite of zeros",
                *_table([[name or "(the model)", why] for name, why in dense], left=2),
            ]
        if self.left:
            lines += ["", "left to torch"]
            lines += _table([[name or "(the model)", reason] for name, reason in self.left.items()], left=2)
        return "\n".join(lines)

    def _saved(self, stats: dict[str, dict[str, Any]], name: str) -> float:
        return sum(site[name]["saved"] for site in stats.values() if name in site)


def _row(name: str, passes: dict[str, Any], met: Mapping[str, float]) -> list[str]:
    zeros = [f"{met[operand]:.0%}" if operand in met else "" for operand in ("x", "dy")]
    algorithms = [_algorithm(passes[each]) if each in passes else "" for each in _PASSES]
    if passes.get("refused") and not any(algorithms):
        return [name, *zeros, *[f"torch's: {', '.join(passes['refused'])}", "", ""], ""]
    saved = _time(sum(passes[each]["saved"] for each in _PASSES if each in passes)) if any(algorithms) else ""
    return [name, *zeros, *algorithms, saved]


def _algorithm(one: dict[str, Any]) -> str:
    """The algorithm, and how many times faster than dense it is where both were timed."""
    name, seconds = one["path"], one["seconds"]
    text = str(name).replace("_", " ")
    if name != "dense" and name in seconds and "dense" in seconds:
        return f"{text} {seconds['dense'] / seconds[name]:.2f}x"
    return text


def _time(seconds: float) -> str:
    return f"{seconds:.2f} s" if abs(seconds) >= 1.0 else f"{1e3 * seconds:.1f} ms"


def _table(rows: list[list[str]], left: int = 1) -> list[str]:
    """Columns of text: the first `left` ones to the left, the others to the right."""
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    cells = [
        [
            cell.ljust(width) if at < left else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        for row in rows
    ]
    return ["  ".join(row).rstrip() for row in cells]
