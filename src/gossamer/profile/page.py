"""The page of a profile: what pays on top, then what was measured of each kind."""

from __future__ import annotations

import os
from pathlib import Path

from gossamer import files
from gossamer.profile.findings import Finding, Findings, Place
from gossamer.report.document import document
from gossamer.report.markup import Markup, tag
from gossamer.report.quantity import MISSING, percent, times

_MOST = 60
"""Parts of a model that a finding's table shows."""


def write(folder: str | os.PathLike[str], found: Findings, command: str) -> list[Path]:
    """Write profile.html and profile.json into a folder, each whole or not at all; returns both paths.

    Args:
        command: that made the findings, shown at the end of the page.
    """
    out = Path(folder)
    out.mkdir(parents=True, exist_ok=True)
    found.to_json(out / "profile.json")
    with files.replacing(out / "profile.html") as file:
        file.write(page(found, command).encode())
    return [out / "profile.html", out / "profile.json"]


def page(found: Findings, command: str) -> str:
    """The whole document."""
    environment = [
        (tag("dt", str(key).replace("_", " ")), tag("dd", _said(value)))
        for key, value in found.environment.items()
        if value not in (None, "")
    ]
    body = tag(
        "main",
        tag("p", "Gossamer profile", class_="eyebrow"),
        tag("h1", f"Where {found.model} is sparse"),
        tag("p", f"Measured on {found.data}. {_summary(found)}", class_="lede"),
        _facts(found),
        tag("h2", "All kinds"),
        _table(found),
        [_section(finding) for finding in found.findings],
        tag("h2", "What to keep in mind"),
        tag("ul", [tag("li", note) for note in found.notes], class_="notes"),
        tag("h2", "How to get this again"),
        tag("p", tag("code", command)),
        tag("dl", environment, class_="environment"),
        tag("footer", "Written by Gossamer. The same numbers are in profile.json."),
    )
    return document(f"Profile of {found.model}", body)


def _said(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {version}" for name, version in value.items())
    return str(value)


def _summary(found: Findings) -> str:
    if not found.pays:
        return f"None of {len(found.findings)} kinds of sparsity is expected to pay here."
    count = len(found.pays)
    return f"{count} of {len(found.findings)} kinds of sparsity {'are' if count > 1 else 'is'} expected to pay."


def _facts(found: Findings) -> Markup:
    facts = [
        tag("div", tag("dd", times(finding.gain.whole)), tag("dt", f"expected by {finding.title}"))
        for finding in found.pays[:4]
        if finding.gain is not None
    ]
    return tag("dl", facts, class_="facts") if facts else Markup("")


def _table(found: Findings) -> Markup:
    head = tag("tr", [tag("th", each, scope="col") for each in ("", "measured", "expected", "verdict")])
    rows = []
    for finding in found.findings:
        gain = MISSING if finding.gain is None else times(finding.gain.whole)
        rows.append(
            tag(
                "tr",
                tag("th", tag("a", finding.title, href=f"#{finding.kind}"), scope="row"),
                tag("td", percent(finding.share)),
                tag("td", gain, class_="compact" if finding.verdict == "pays" else "quiet"),
                tag("td", _verdict(finding), class_="ratio" if finding.verdict == "pays" else "quiet"),
            )
        )
    return tag("div", tag("table", tag("thead", head), tag("tbody", rows)), class_="scroll")


def _verdict(finding: Finding) -> str:
    return "not measured" if finding.verdict == "not measured because" else finding.verdict


def _section(finding: Finding) -> list[Markup]:
    found = f"{finding.found[0].upper()}{finding.found[1:]}"
    verdict = f"{finding.verdict.capitalize()}. "
    if finding.verdict == "not measured because":
        verdict, found = "Not measured ", f"because {finding.found}"
    parts = [
        tag("h2", finding.title[0].upper() + finding.title[1:], id=finding.kind),
        tag("p", tag("b", verdict), f"{found}."),
    ]
    if finding.gain is not None:
        said = str(finding.gain)
        how = finding.gain.how
        parts.append(tag("p", f"{said[0].upper()}{said[1:]}: {how}.", class_="quiet"))
    if finding.to_try:
        what = tag("pre", tag("code", finding.to_try))
        tried = finding.verdict == "pays" or finding.kind == "attention"
        parts.append(what if tried else tag("details", tag("summary", "To try it all the same"), what))
    if finding.where:
        parts.append(_places(finding.where))
    return parts


def _places(where: tuple[Place, ...]) -> Markup:
    head = tag("tr", [tag("th", each, scope="col") for each in ("", "measured", "of the time", "alone")])
    rows = [
        tag(
            "tr",
            tag("th", place.name, scope="row"),
            tag("td", percent(place.share)),
            tag("td", percent(place.time)),
            tag("td", times(place.alone)),
        )
        for place in where[:_MOST]
    ]
    table = tag("div", tag("table", tag("thead", head), tag("tbody", rows)), class_="scroll")
    more = f", the first {_MOST}" if len(where) > _MOST else ""
    return tag("details", tag("summary", f"Where: {len(where)} part{'s' * (len(where) > 1)} of the model{more}"), table)
