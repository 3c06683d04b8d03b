"""The tables of docs/convolutions.md."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from itertools import groupby
from typing import Any

from cells import Rows, entry, milliseconds, ratio, short, table

LAST, CONTIGUOUS, OURS = "torch channels_last", "torch contiguous", "gs.nn.skip_zeros"
PLAIN = "gs.nn.skip_zeros, contiguous input"
ASKED = "gs.nn.skip_zeros, keep_packed and channels_last"
KEPT, PACKED = "pack kept", "packed in the call"


def _pair(row: dict[str, Any]) -> str:
    """In training, and (in parentheses) with what only inference or the other operand's zeros allow."""
    names = ("ours, packing", "ours") if entry(row, "ours") else ("ours, zeros of x", "ours, zeros of dy")
    one, other = (entry(row, name) for name in names)
    assert one is not None and other is not None
    return f"{one['ratio']:.2f} ({other['ratio']:.2f})"


def kernels(rows: Rows) -> str:
    """One line per layer, pass and kind of masks, one column per share of zeros."""
    shares = sorted({row["zeros"] for row in rows if "zeros" in row})
    head = ["layer", "batch", "pass", "zeros", "dense ms", *(f"{share:.0%}" for share in shares), "wins from", "A/A"]
    crossings = {(row["layer"], row.get("batch"), row["pass"]): row["crossover"] for row in rows if "crossover" in row}
    body = []
    measured = [row for row in rows if "zeros" in row]
    for (layer, batch, which, masks), found in groupby(
        measured, lambda row: (row["layer"], row.get("batch"), row["pass"], row["masks"])
    ):
        line = {row["zeros"]: row for row in found}
        first, wins = next(iter(line.values())), crossings[layer, batch, which]
        body.append(
            [
                layer, str(batch or ""), which, masks, milliseconds(first, first["baseline"]),
                *(_pair(line[share]) if share in line else "" for share in shares),
                "" if masks != "random" else "never" if wins is None else f"{wins:.0%}",
                f"{statistics.median(row['control']['ratio'] for row in line.values()):.2f}",
            ]
        )  # fmt: skip
    return table(head, body)


def baselines(rows: Rows) -> str:
    """Milliseconds of everybody where there is no zero, and of callers who hold the other layout at half zeros."""
    head = ["layer", "pass", LAST, CONTIGUOUS, "onnxruntime", "ours", "torch converting, 50 %", "ours converting, 50 %"]
    keyed = {
        (row["layer"], row["pass"], row.get("batch"), row["zeros"], row["masks"]): row for row in rows if "zeros" in row
    }
    body = []
    for (layer, which, batch, zeros, masks), row in keyed.items():
        half = keyed.get((layer, which, batch, 0.5, "random"))
        if zeros == 0.0 and masks == "random" and half is not None:
            ours = "ours, zeros of x" if which == "weight" else "ours, packing"
            body.append(
                [
                    layer, which, *(milliseconds(row, name) for name in (LAST, CONTIGUOUS, "onnxruntime", ours)),
                    *(milliseconds(half, f"{who} converting") for who in ("torch", "ours")),
                ]
            )  # fmt: skip
    return table(head, body)


def auto(rows: Rows) -> str:
    head = ["layer", "zeros", "best torch ms", '`skip="auto"`', '`skip="input"`', "A/A"]
    body = [
        [
            row["layer"], f"{row['zeros']:.0%}", milliseconds(row, row["baseline"]), ratio(row, "auto"),
            short(row, "skip always"), f"{row['control']['ratio']:.2f}x",
        ]
        for row in rows
    ]  # fmt: skip
    return table(head, body)


def weights(rows: Rows) -> str:
    head = ["layer", "batch", "50 % zeros, pack kept ms", "packed in the call", "90 % zeros, pack kept ms"]
    head += ["packed in the call", "dense, weight in channels_last ms", "weight contiguous", "A/A"]
    body = []
    for half, most, dense in zip(rows[::3], rows[1::3], rows[2::3], strict=True):
        body.append(
            [
                half["layer"], str(half["batch"]),
                milliseconds(half, KEPT), ratio(half, PACKED), milliseconds(most, KEPT), ratio(most, PACKED),
                milliseconds(dense, LAST), ratio(dense, CONTIGUOUS),
                " ".join(f"{row['control']['ratio']:.2f}x" for row in (half, most, dense)),
            ]
        )  # fmt: skip
    return table(head, body)


def networks(rows: Rows) -> str:
    head = ["network", "step", "batch", "mean zeros", "convolutions: torch ms", "ours", "A/A", "published"]
    head += [
        "whole step: torch ms",
        "ours",
        "contiguous input",
        "packs kept and channels_last",
        "A/A",
        "outside the convolutions: torch ms",
        "ours ms",
    ]
    body = []
    for row in rows:
        conv, split = row["conv"], row["split"]

        def outside(name: str, split: dict[str, Any] = split) -> str:
            return f"{1e3 * sum(split[name].get(part, 0.0) for part in ('first', 'copies', 'other')):.0f}"

        body.append(
            [
                row["network"], row["mode"], str(row["batch"]), f"{row['zeros']:.0%}",
                milliseconds(conv, conv["baseline"]), ratio(conv, OURS), f"{conv['control']['ratio']:.2f}x",
                f"{row['published']:.2f}x" if row["published"] else "",
                milliseconds(row, row["baseline"]), ratio(row, OURS), short(row, PLAIN), short(row, ASKED),
                f"{row['control']['ratio']:.2f}x",
                outside(row["baseline"]), outside(OURS),
            ]
        )  # fmt: skip
    return table(head, body)


def training(rows: Rows) -> str:
    head = ["network", "steps", "torch s", "ours s", "whole run", "convolutions"]
    head += [
        "torch: forward, by input, by weight, rest s",
        "ours",
        "at the same weights: loss, gradient apart",
        "losses of two runs apart: ours, torch's other format",
        "loss, first to last",
        "accuracy: torch channels_last, contiguous, ours",
    ]
    body = []
    for row in rows:
        best, seconds = row["best"], row["seconds"]

        def parts(name: str, seconds: dict[str, Any] = seconds) -> str:
            found = seconds[name]
            parts = [found[part] for part in ("forward", "by input", "by weight")]
            return ", ".join(f"{part:.1f}" for part in [*parts, found["step"] - sum(parts)])

        body.append(
            [
                row["network"], str(row["steps"]), f"{seconds[best]['step']:.1f}", f"{seconds[OURS]['step']:.1f}",
                f"{row['speedup']:.2f}x", f"{row['conv_speedup']:.2f}x", parts(best), parts(OURS),
                f"{row['same_weights'][OURS]['loss']:.0e}, {row['same_weights'][OURS]['gradient']:.0e}",
                f"{row['loss_apart']:.1e}, {row['loss_apart_torch']:.1e}",
                f"{row['loss_first']:.2f} to {row['loss_last']:.2f}",
                ", ".join(f"{row['accuracy'][key]:.1%}" for key in (LAST, CONTIGUOUS, OURS)),
            ]
        )  # fmt: skip
    return table(head, body)


def zeros(rows: Rows) -> str:
    """VGG-16 layer by layer, the others as means: their layers are too many for a page."""
    epochs = [log["epoch"] for log in rows[0]["zeros"]]
    head = ["network", "convolution", *(f"epoch {epoch}: {side}" for epoch in epochs for side in ("input", "gradient"))]
    body = []
    for row in rows:
        layers = [[log["layers"][i] for log in row["zeros"]] for i in range(len(row["zeros"][0]["layers"]))][1:]
        if row["network"].startswith("vgg"):
            body += [
                [row["network"], found[0]["layer"], *(f"{log[side]:.0%}" for log in found for side in ("x", "dy"))]
                for found in layers
            ]
        else:
            means = [
                statistics.mean(found[epoch][side] for found in layers)
                for epoch in range(len(epochs)) for side in ("x", "dy")
            ]  # fmt: skip
            body.append([row["network"], f"mean of {len(layers)}", *(f"{mean:.0%}" for mean in means)])
    return table(head, body)


TABLES: dict[str, Callable[[Rows], str]] = {
    "kernels": kernels,
    "kernels.baselines": baselines,
    "linear": kernels,
    "auto": auto,
    "networks": networks,
    "weights": weights,
    "conv training": training,
    "training.zeros": zeros,
}
