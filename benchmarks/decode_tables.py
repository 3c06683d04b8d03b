"""The tables of docs/activations.md."""

from __future__ import annotations

from collections.abc import Callable

from cells import Rows, ratio, table


def gemv(rows: Rows) -> str:
    head = ["features", "rows", "zeros", "torch by output ms", "torch by input ms", "`skip_mv`", "`gated_mv`", "A/A"]
    body = [
        [
            f"{row['in']} to {row['out']}", str(row["batch"]), f"{row['zeros']:.0%}",
            *(f"{entry['median'] * 1e3:.2f}" for entry in row["rows"] if entry["name"].startswith("torch")),
            ratio(row, "skip_mv"), ratio(row, "gated_mv"), f"{row['control']['ratio']:.2f}x",
        ]
        for row in rows
    ]  # fmt: skip
    return table(head, body)


def decode(rows: Rows) -> str:
    head = ["left out", "share of the weights read", "dense tokens/s", "tokens/s", "ratio", "A/A"]
    body = [
        [
            row["sparsity"], f"{1 - row['realised'] * row['share_of_bytes']:.0%}",
            f"{row['tokens_per_second']['dense']:.1f}", f"{row['tokens_per_second']['ours']:.1f}",
            ratio(row, "ours"), f"{row['control']['ratio']:.2f}x",
        ]
        for row in rows
    ]  # fmt: skip
    return table(head, body)


def quality(rows: Rows) -> str:
    head = ["trained with", "thresholds", "sparsity", "gates closed", "perplexity"]
    body = [
        [
            row["model"], row["thresholds"], f"{row['sparsity']:.0%}", f"{row['gates']:.0%}",
            f"{row['perplexity']:.3f}",
        ]
        for row in rows
    ]  # fmt: skip
    return table(head, body)


TABLES: dict[str, Callable[[Rows], str]] = {"gemv": gemv, "decode": decode, "quality": quality}
