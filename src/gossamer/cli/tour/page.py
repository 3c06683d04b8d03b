"""The page of a tour: a card for each system with its number, its baseline, where it loses, and how to have it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gossamer.cli.tour.card import Shown, Timed
from gossamer.report.bars import bars
from gossamer.report.document import document
from gossamer.report.markup import Markup, tag
from gossamer.report.quantity import times

_TOLD = {
    "faster": "as fast as",
    "slower": "as fast as",
    "inconclusive": "no faster or slower, as far as can be told, than",
}


def _number(timed: Timed) -> Markup:
    """The ratio in large, and over what; where noise hides a difference, this is said in its place."""
    comparison, row = timed.comparison, timed.row
    told = row["verdict"]
    ratio = "1\N{MULTIPLICATION SIGN}" if told == "inconclusive" else times(row["ratio"])
    spread = f"quartiles {times(row['ratio_q1'])} to {times(row['ratio_q3'])}"
    again = f"{comparison['baseline']} against itself {times(comparison['control']['ratio'])}"
    return tag("div", tag("dd", ratio), tag("dt", f"{_TOLD[told]} {comparison['baseline']} ({spread}; {again})"))


def _timed(head: str, timed: Timed) -> Markup:
    what = timed.what[0].upper() + timed.what[1:] + "."
    drawn = bars(timed.comparison, title=timed.what, ours=timed.ours)
    return tag("figure", tag("h3", head), tag("p", what, class_="quiet"), drawn)


def _other(timed: Timed) -> str:
    """The heading of the other case: which machine it loses on is not known beforehand."""
    return "Where it pays least" if timed.row["verdict"] == "faster" else "Where it does not"


def _card(shown: Shown) -> Markup:
    made = shown.card
    head = [
        tag("p", made.system, class_="eyebrow"),
        tag("h2", made.title),
        tag("p", made.idea, class_="lede"),
    ]
    if shown.outcome is None:
        body = [tag("p", f"This card failed: {shown.error}", class_="failed")]
    else:
        found = shown.outcome
        facts = [tag("div", tag("dd", value), tag("dt", label)) for value, label in found.facts]
        links = [tag("a", label, href=f"{shown.name}/{place}") for label, place in found.links]
        body = [
            tag("dl", _number(found.gain), facts, class_="facts"),
            tag("div", _timed("Where it pays", found.gain), _timed(_other(found.loses), found.loses), class_="pair"),
            tag("p", made.loses),
            tag("p", [[link, " "] for link in links]) if links else Markup(""),
        ]
    lines = [tag("h3", "On your own"), tag("pre", made.lines.strip(), class_="lines")]
    more = tag(
        "p", "How it works: ", tag("code", made.page), f". This card took {shown.seconds:.0f} s.", class_="quiet"
    )
    return tag("section", head, body, lines, more, class_="card", id=shown.name)


def _index(shown: Sequence[Shown]) -> Markup:
    """All cards in one table: the number, and that of the other case."""
    rows = []
    for each in shown:
        found = each.outcome
        numbers = [times(t.row["ratio"]) for t in (found.gain, found.loses)] if found else ["failed", ""]
        link = tag("a", each.card.title, href=f"#{each.name}")
        rows.append(tag("tr", tag("th", link, scope="row"), [tag("td", number) for number in numbers]))
    head = tag("tr", tag("th", ""), tag("th", "where it pays", scope="col"), tag("th", "where least", scope="col"))
    return tag("div", tag("table", tag("thead", head), tag("tbody", rows)), class_="scroll")


def page(shown: Sequence[Shown], runs: Sequence[Mapping[str, Any]]) -> str:
    """The whole document.

    Args:
        shown: the cards. runs: what the record says of each: its `environment`, and whether it was `quick`.
    """
    where = runs[-1]["environment"]
    lede = (
        "Dynamic sparsity: zeros whose places are known only at run time, or that move while a network trains. Each "
        "card is a run on this machine, with the dense baseline timed in turns with it, and dense a second time as "
        "the control: a difference no larger than that one is noise."
    )
    toy = "Some cards ran with toy sizes, which say nothing about speed." if any(run["quick"] for run in runs) else None
    body = tag(
        "main",
        tag("p", "Gossamer", class_="eyebrow"),
        tag("h1", "A tour of seven systems"),
        tag("p", lede, class_="lede"),
        tag("p", toy, class_="failed") if toy else None,
        _index(shown),
        [_card(each) for each in shown],
        tag(
            "footer", f"{where['cpu']}, {where['threads']} threads, torch {where['versions']['torch']}, {where['date']}"
        ),
    )
    return document("A tour of Gossamer", body)
