"""What a profile found: a finding for each kind of sparsity, its expected gain, and what to try."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from gossamer import files
from gossamer.measure import GAIN, Comparison

Verdict = Literal["pays", "too little to gain", "nothing here", "not measured because"]

KINDS = {
    "zeros": "zeros in activations",
    "decoding": "zeros in activations, one token at a time",
    "small": "small activations, one token at a time",
    "padding": "padding of batches",
    "experts": "experts that tokens do not choose",
    "layers": "layers that tokens do not need",
    "attention": "keys that no query looks at",
    "channels": "channels that are exactly zero",
    "width": "channels that training can do without",
    "labels": "an output layer over many labels",
}
"""Each kind of sparsity that is looked for: its short name, and what it is."""

_ORDER = ("pays", "too little to gain", "nothing here", "not measured because")


@dataclass(frozen=True)
class Place:
    """A layer, or another part of a model, in which something was measured.

    Attributes:
        name: of the module. share: what the finding counts there, 0 to 1.
        time: its share of the time of the gain's base; None where it was not timed.
        alone: how many times as fast it would be by itself; None where that was not measured.
    """

    name: str
    share: float
    time: float | None = None
    alone: float | None = None


@dataclass(frozen=True)
class Gain:
    """How much faster something is expected to be.

    Attributes:
        whole: how many times as fast, all of it. base: what is compared with: which work, done how.
        how: how the number was got.
        alone: how many times as fast the parts concerned are by themselves. share: their share of the base's time.
            None where the whole was measured at once.
    """

    whole: float
    base: str
    how: str
    alone: float | None = None
    share: float | None = None

    def __str__(self) -> str:
        parts = "" if self.alone is None else f" (these parts alone {self.alone:.2f}x, {self.share:.0%} of the time)"
        return f"expected {self.whole:.2f}x of {self.base}{parts}"


@dataclass(frozen=True)
class Finding:
    """One kind of sparsity in a model.

    Attributes:
        kind: one of `KINDS`. verdict: whether it is expected to pay.
        found: what was measured, or why nothing was, a sentence.
        share: the number that was measured, 0 to 1; None where nothing was.
        gain: what is expected of it; None where there is nothing to gain.
        where: the parts of the model, those with most of the gain first.
        to_try: a command of the shell, or lines of Python in which `model` is the model and `batches` the data;
            empty where there is nothing to try.
    """

    kind: str
    verdict: Verdict
    found: str
    share: float | None = None
    gain: Gain | None = None
    where: tuple[Place, ...] = ()
    to_try: str = ""

    @property
    def title(self) -> str:
        """What this kind of sparsity is."""
        return KINDS[self.kind]

    def __str__(self) -> str:
        said = f"{self.verdict} {self.found}" if self.verdict == "not measured because" else self.found
        lines = [f"{self.title}: {self.verdict if self.verdict != 'not measured because' else 'not measured'}"]
        lines += textwrap.wrap(said, 108, initial_indent="  ", subsequent_indent="  ")
        if self.gain is not None:
            lines += textwrap.wrap(f"{self.gain}; {self.gain.how}", 108, initial_indent="  ", subsequent_indent="  ")
        if self.to_try and (self.verdict == "pays" or self.kind == "attention"):
            lines += ["", *(f"      {line}" for line in self.to_try.splitlines()), ""]
        return "\n".join(lines)


def told(run: Comparison, name: str) -> tuple[float, str]:
    """How many times as fast `name` is as the baseline, 1 where this run cannot tell; and the latter in words."""
    row = run[name]
    if run.faster(name):
        return row.ratio, ""
    if row.ratio <= 1 + GAIN or run.slower(name):
        return 1.0, ""
    control = f"{run.control.ratio_q1:.2f}x to {run.control.ratio_q3:.2f}x"
    return 1.0, f". It was {row.ratio:.2f}x, which is not told from noise: the same thing twice gave {control}"


def verdict_of(gain: Gain) -> Verdict:
    """Whether a gain is worth anything: beyond what two equal things seem to differ by.

    >>> verdict_of(Gain(1.2, "a pass", "")), verdict_of(Gain(1.01, "a pass", ""))
    ('pays', 'too little to gain')
    """
    return "pays" if gain.whole > 1 + GAIN else "too little to gain"


def combined(places: list[Place], base: str, how: str) -> Gain:
    """The gain of the whole from those of its parts, by Amdahl's law.

    >>> combined([Place("a", 0.9, time=0.5, alone=2.0)], "a pass", "").whole
    1.3333333333333333
    """
    timed = [(place.time, place.alone) for place in places if place.time is not None and place.alone is not None]
    share = sum(time for time, _ in timed)
    after = sum(time / alone for time, alone in timed)
    return Gain(1 / (1 - share + after), base, how, share / after if after else 1.0, share)


@dataclass(frozen=True)
class Findings:
    """All that was found in a model, what pays most first.

    Attributes:
        model: its class, or its name and class. data: what it read.
        findings: one for each kind that was looked for.
        notes: what to keep in mind.
        environment: of `gossamer.measure.environment`.
    """

    model: str
    data: str
    findings: tuple[Finding, ...]
    notes: tuple[str, ...]
    environment: Mapping[str, Any]

    def __getitem__(self, kind: str) -> Finding:
        for finding in self.findings:
            if finding.kind == kind:
                return finding
        raise KeyError(f"no finding {kind!r}; there are {[finding.kind for finding in self.findings]}")

    @property
    def pays(self) -> tuple[Finding, ...]:
        """The findings that are expected to pay, most first."""
        return tuple(finding for finding in self.findings if finding.verdict == "pays")

    def __str__(self) -> str:
        lines = [f"{self.model}, {self.data}", ""]
        for at, finding in enumerate(self.findings, 1):
            lines.append(f"{at}. {finding}")
        lines += [line for note in self.notes for line in ("", *textwrap.wrap(f"Note: {note}", 108))]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for `json.dump`."""
        return {
            "model": self.model, "data": self.data, "notes": list(self.notes), "environment": dict(self.environment),
            "findings": [{**asdict(finding), "title": finding.title} for finding in self.findings],
        }  # fmt: skip

    def to_json(self, path: str | os.PathLike[str]) -> None:
        """Write `to_dict` to a file, whole or not at all."""
        files.write_json(path, self.to_dict())


def in_order(findings: list[Finding]) -> tuple[Finding, ...]:
    """What pays first, by its expected gain; then the others by their verdict."""
    return tuple(
        sorted(findings, key=lambda f: (_ORDER.index(f.verdict), -(f.gain.whole if f.gain is not None else 0.0)))
    )
