"""The words of a report: what to read off the numbers, and what not to."""

from __future__ import annotations

import math
from typing import Any

from gossamer.cli.train.config import Train
from gossamer.report.quantity import percent, short, times

_ROWS = (
    ("accuracy", "test accuracy", lambda v: percent(v, 2)),
    ("parameters", "parameters", lambda v: f"{v:,}"),
    ("nonzeros", "nonzeros", lambda v: f"{v:,}"),
    ("flops", "FLOPs, one example", short),
    ("bytes", "bytes", lambda v: short(v, "B")),
    ("latency", "latency", lambda v: short(v, "s")),
    ("throughput", "throughput", lambda v: f"{short(v)}/s"),
)


def text_table(report: dict[str, Any]) -> str:
    """The table of the report for a terminal."""
    table = report["table"]
    lines = [f"{'':24}" + "".join(f"{name:>12}" for name in table)]
    for key, label, show in _ROWS:
        if any(entry.get(key) is not None for entry in table.values()):
            label = f"{label}, batch {report[key]['batch']}" if key in report else label
            cells = ("-" if entry.get(key) is None else show(entry[key]) for entry in table.values())
            lines.append(f"{label:24}" + "".join(f"{cell:>12}" for cell in cells))
    return "\n".join(lines)


def _row(comparison: dict[str, Any], name: str) -> dict[str, Any]:
    return next(row for row in comparison["rows"] if row["name"] == name)


def _at_chance(report: dict[str, Any]) -> list[str]:
    """The networks whose accuracy cannot be told from guessing.

    Guessing names the most frequent class every time; three standard errors of that share are its noise.
    """
    guess, n = report.get("chance"), report.get("test_examples")
    if guess is None or n is None:
        return []
    most = guess + 3 * math.sqrt(guess * (1 - guess) / n)
    table = report["table"]
    return [name for name, row in table.items() if row["accuracy"] is not None and row["accuracy"] <= most]


def summary(config: Train, density: float | None, channels: float | None) -> str:
    """One sentence under the title; the shares of weights and channels are those of the end."""
    out = f"Trained from scratch by {config.method} with {100 * config.density:g} % of the weights"
    if density is not None and density < 0.9 * config.density:
        out += f" ({100 * density:.2g} % in the end)"
    if channels is not None and channels < 1:
        out += f", while {percent(1 - channels, 0)} of the channels were removed"
    return out + "."


def facts(report: dict[str, Any], channels_removed: float | None) -> list[dict[str, str]]:
    """The few numbers at the top of the page."""
    table = report["table"]
    dense, compact = table["dense"], table["compact"]
    out = []
    if dense["accuracy"] is None:
        out.append({"value": percent(compact["accuracy"]), "label": "test accuracy of the compact network"})
    else:
        gap = 100 * (dense["accuracy"] - compact["accuracy"])
        against = f"{gap:.2f} points under" if gap > 0 else f"{-gap:.2f} points over" if gap < 0 else "equal to"
        out.append({"value": percent(compact["accuracy"]), "label": f"test accuracy, {against} dense"})
    if "compact" in _at_chance(report):
        out[0]["label"] += f"; no better than guessing ({percent(report['chance'])})"
    unchanged = (dense["parameters"], dense.get("flops", 0)) == (compact["parameters"], compact.get("flops"))
    if "throughput" in report and not unchanged:  # two networks of one size differ by noise
        row = _row(report["throughput"], "compact")
        ratio, verdict = times(row["ratio"]), row["verdict"]
        itself = f"dense against itself {times(report['throughput']['control']['ratio'])}"
        if verdict == "inconclusive":
            out.append({"value": "no faster", "label": f"that could be told: {ratio} dense throughput ({itself})"})
        else:
            than = "" if verdict == "faster" else ", slower than dense"
            out.append({"value": ratio, "label": f"the throughput of dense{than} ({itself})"})
    if dense["parameters"] == compact["parameters"]:
        out.append({"value": "none", "label": "of the parameters removed: compact is as large as dense"})
    else:
        ratio = dense["parameters"] / compact["parameters"]
        out.append({"value": times(ratio), "label": "fewer parameters than dense"})
    if channels_removed is not None:
        out.append({"value": percent(channels_removed, 0), "label": "of the channels removed"})
    return out


def notes(report: dict[str, Any], config: Train, refused: str | None) -> list[str]:
    """What a reader must know before quoting a number; `refused` = why nothing was removed in the end."""
    out = [
        "The sparse network is masked: its zeros lie inside dense tensors and are multiplied like any number, in "
        "training and afterwards. It is no faster than the dense one. Time is saved by removed channels only."
    ]
    if config.compact_every is not None:
        out[0] += " Here most of them were cut out while it trained already: it is shown at the size it had in the end."
    if refused is not None:
        more = "more " if config.compact_every is not None else ""
        out.append(f"Nothing {more}was removed in the end, compact is the sparse network itself: {refused}.")
    verdict = _row(report["throughput"], "compact")["verdict"] if "throughput" in report else "faster"
    if verdict != "faster":
        told = "slower than" if verdict == "slower" else "by no more than the noise faster than"
        out.append(f"On this machine the compact network is {told} the dense one.")
    if "throughput" in report:
        control = report["throughput"]["control"]
        out.append(
            f"A/A control: the dense network timed against itself came out at {times(control['ratio'])} (quartiles "
            f"{times(control['ratio_q1'])} to {times(control['ratio_q3'])}). Smaller differences mean nothing."
        )
    for name in _at_chance(report):
        out.append(
            f"{name.capitalize()} accuracy is no better than naming the most frequent class every time "
            f"({percent(report['chance'])}): nothing can be compared by it; more --epochs or another --lr may help."
        )
    if report.get("unseen") is not None:
        out.append(f"{report['unseen']}.")
    if report["table"]["dense"]["accuracy"] is None:
        out.append("No dense baseline was trained, so the loss of accuracy is not known.")
    out.append("Accuracy is that of the last step; the test examples chose neither a step nor a setting of this run.")
    if config.data == "digits":
        out.append(
            "Digits are 1797 images of 8 by 8 pixels: this shows that the machinery works and says nothing about "
            "large data. One test image is about 0.28 points of accuracy."
        )
    return out
