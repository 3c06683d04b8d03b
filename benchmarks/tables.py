"""Fill the tables of README.md and docs/ from the committed results; `--check` only says whether they are current.

A table stands between two comment lines and is replaced as a whole:

    <!-- table: cpu/compact throughput -->
    ...
    <!-- end -->

names the file benchmarks/results/cpu/compact.json and its section `throughput`. `training.zeros` is a second table of
the section `training`.
"""

from __future__ import annotations

import json
import re
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import conv_tables
import decode_tables
from cells import Rows, ratio, short, table

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
MARK = re.compile(r"(<!-- table: (\S+) (\S+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)


def _flops(row: dict[str, Any], name: str) -> str:
    counts = row["counts"]
    return f"{counts[name]['flops'] / counts['dense']['flops']:.2f}" if name in counts else ""


def throughput(rows: Rows) -> str:
    head = [
        "model",
        "channels removed",
        "batch",
        "layout",
        "dense ms",
        "compact",
        "FLOPs",
        "Torch-Pruning",
        "its FLOPs",
        "masked only",
        "A/A",
    ]
    body = [
        [
            row["model"], f"{row['share_removed']:.1%}", str(row["batch"]), row["layout"],
            f"{row['rows'][0]['median'] * 1e3:.1f}", ratio(row, "compact"), _flops(row, "compact"),
            ratio(row, "torch-pruning"), _flops(row, "torch-pruning"),
            ratio(row, "masked"), ratio(row, "dense (control)"),
        ]
        for row in rows
    ]  # fmt: skip
    return table(head, body)


def scoring(rows: Rows) -> str:
    head = ["model", "channels compared by", *(f"seed {r['seed']} %" for r in _of_first(rows) if r["seed"] != "mean")]
    head += ["mean %", "FLOPs of dense", "parameters of dense"]
    body = []
    for mean in (row for row in rows if row["seed"] == "mean"):
        mine = [r for r in rows if (r["model"], r["normalize"]) == (mean["model"], mean["normalize"])]
        how = "(dense)" if mean["normalize"] == "dense" else f'`"{mean["normalize"]}"`'
        scores = [f"{100 * row['accuracy']:.2f}" for row in mine]
        body.append([mean["model"], how, *scores, f"{mean['flops']:.2f}", f"{mean['parameters']:.2f}"])
    return table(head, body)


def _of_first(rows: Rows) -> Rows:
    """The rows of the first network and the first way."""
    return [r for r in rows if (r["model"], r["normalize"]) == (rows[0]["model"], rows[0]["normalize"])]


def trained(rows: Rows) -> str:
    head = ["model", "`normalize`", "`scope`", "channels removed", "batch", "dense ms", "compact", "FLOPs", "A/A"]
    body = [
        [
            row["model"], row["normalize"], row["scope"], f"{row['share_removed']:.1%}", str(row["batch"]),
            f"{row['rows'][0]['median'] * 1e3:.1f}", ratio(row, "compact"), _flops(row, "compact"),
            ratio(row, "dense (control)"),
        ]
        for row in rows
    ]  # fmt: skip
    return table(head, body)


def refusal(rows: Rows) -> str:
    body = [[row["model"], f"{row['removed']:.0%}", row["refused"] or "not refused"] for row in rows]
    return table(["model", "channels removed", "`compact` says"], body)


def overhead(rows: Rows) -> str:
    head = ["method", "dense step ms", "step between updates, over dense", "A/A", "one event, in dense steps"]
    body = []
    for row in rows:
        dense, ours = row["rows"]
        events = [f"{kind} {cost:.2f}" for kind, cost in row["update_in_dense_steps"].items()]
        body.append(
            [
                row["method"], f"{dense['median'] * 1e3:.0f}", f"{ours['median'] / dense['median']:.3f}",
                f"{row['control']['median'] / dense['median']:.3f}", ", ".join(events),
            ]
        )  # fmt: skip
    return table(head, body)


def shrinking(rows: Rows) -> str:
    head = ["model", "steps", "channel sparsity", "sum of step times over dense", "A/A", "last steps over dense"]
    body = [
        [
            row["model"], str(row["steps"]), f"{row['channel_sparsity']:.0%}", f"{row['over_dense']:.2f}",
            f"{row['control']:.2f}", f"{row['last_step']['chase'] / row['last_step']['dense']:.2f}",
        ]
        for row in rows
    ]  # fmt: skip
    return table(head, body)


def digits(rows: Rows) -> str:
    head = ["seed", "dense %", "sparse %", "compact %", "channels left", "parameters", "FLOPs"]
    head += ["throughput, batch 256", "masked only", "A/A", "latency, batch 1"]
    body = []
    runs = [row for row in rows if row["seed"] != "mean"]
    for row in runs:
        scores = row["table"]
        dense, compact = scores["dense"], scores["compact"]
        body.append(
            [
                str(row["seed"]), *(f"{100 * scores[key]['accuracy']:.2f}" for key in ("dense", "sparse", "compact")),
                f"{row['channels_left']:.0%}",
                f"{compact['parameters'] / dense['parameters']:.2f} of dense",
                f"{compact['flops'] / dense['flops']:.2f} of dense",
                ratio(row["throughput"], "compact"), ratio(row["throughput"], "sparse"),
                ratio(row["throughput"], "dense (control)"), ratio(row["latency"], "compact"),
            ]
        )  # fmt: skip
    mean = [statistics.mean(row["table"][key]["accuracy"] for row in runs) for key in ("dense", "sparse", "compact")]
    body.append(["mean", *(f"{100 * value:.2f}" for value in mean), *[""] * 7])
    return table(head, body)


def tiles(rows: Rows) -> str:
    head = ["tile", "density of tiles", "one read ms", "`gs.detect`, in reads", "torch, in reads", "A/A"]
    body = []
    for row in rows:
        read, ours, theirs = row["rows"]
        body.append(
            [
                f"{row['tile'][0]} x {row['tile'][1]}", f"{row['density']:.3g}", f"{read['median'] * 1e3:.2f}",
                f"{1 / ours['ratio']:.2f}", f"{1 / theirs['ratio']:.1f}", f"{row['control']['ratio']:.2f}",
            ]
        )  # fmt: skip
    return table(head, body)


def _tile(row: dict[str, Any]) -> str:
    return f"{row['tile'][0]} x {row['tile'][1]}"


def products(rows: Rows) -> str:
    names = ("dynamic", "static", "torch BSR", "torch CSR", "scipy CSR")
    head = ["m = k", "n", "tile", "density", "dense ms", *names, "A/A", "GFLOP/s dense", "on present tiles"]
    body = [
        [
            str(row["size"]), str(row["n"]), _tile(row), f"{row['density']:.3g}",
            f"{row['rows'][0]['median'] * 1e3:.2f}", *(short(row, name) for name in names),
            f"{row['control']['ratio']:.2f}x", f"{row['dense_gflops']:.0f}", f"{row['gflops']:.0f}",
        ]
        for row in rows
        if "size" in row
    ]  # fmt: skip
    law = rows[-1]
    fits = [
        f"{whose}: {fit['c']:.2g} · size^{fit['size']:.2f} · density^{fit['density']:.2f} · block^{fit['block']:.2f}"
        for whose, fit in (
            ("Least squares over these cells", law["fit"]),
            ("PopSparse on an IPU, FP16", law["popsparse"]),
        )
    ]
    within = f"every point within {law['fit']['within']:.1f}x of the law"
    return table(head, body) + f"\n{fits[0]} ({within}). {fits[1]}; only the shapes compare.\n"


def break_even(rows: Rows) -> str:
    densities = [point["density"] for point in rows[0]["points"]]
    head = ["block", "break-even density", *(f"at {density:.2g}" for density in densities)]
    body = []
    for row in rows:
        at = row["break_even"]
        where = "below the first" if at is None else "none: faster at 1" if at == 1.0 else f"{at:.2f}"
        body.append([str(row["block"]), where, *(short(point, "dynamic") for point in row["points"])])
    return table(head, body)


def gradients(rows: Rows) -> str:
    head = ["gradient of", "block", "density", "dense ms", "ours", "index transposed in the call", "A/A"]
    body = [
        [
            row["gradient"], str(row["block"]), f"{row['density']:.3g}", f"{row['rows'][0]['median'] * 1e3:.2f}",
            ratio(row, "ours"), short(row, "index transposed in the call"), f"{row['control']['ratio']:.2f}x",
        ]
        for row in rows
    ]  # fmt: skip
    return table(head, body)


def detection(rows: Rows) -> str:
    head = ["tile", "density", "`gs.detect`", "and gather", "torch conversion", "A/A"]
    names = ("gs.detect", "gs.detect and gather", "torch conversion")
    body = [
        [
            _tile(row), f"{row['density']:.3g}", *(f"{row['share'][name]:.1%}" for name in names),
            f"{row['control']['ratio']:.2f}x",
        ]
        for row in rows
    ]  # fmt: skip
    return table(head, body)


def _runtime(rows: Rows, tile: bool) -> str:
    names = ("detected", "tile='auto'", "index given") + (() if tile else ("torch, rows selected",))
    head = [*(["tile"] if tile else []), "zeros", "dense ms", *names, "A/A"]
    body = [
        [
            *([_tile(row)] if tile else []), f"{row['zeros']:.0%}", f"{row['rows'][0]['median'] * 1e3:.2f}",
            *(ratio(row, name) for name in names), f"{row['control']['ratio']:.2f}x",
        ]
        for row in rows
    ]  # fmt: skip
    return table(head, body)


def row_axis(rows: Rows) -> str:
    return _runtime(rows, tile=False)


def column_axis(rows: Rows) -> str:
    return _runtime(rows, tile=True)


def workloads(rows: Rows) -> str:
    head = ["workload", "setting", "baseline", "ms", "others, over it", "A/A"]
    body = [
        [
            row["workload"], str(row["setting"]), row["rows"][0]["name"], f"{row['rows'][0]['median'] * 1e3:.2f}",
            ", ".join(f"{entry['name']} {ratio(row, entry['name'])}" for entry in row["rows"][1:]),
            f"{row['control']['ratio']:.2f}x",
        ]
        for row in rows
    ]  # fmt: skip
    return table(head, body)


def training(rows: Rows) -> str:
    head = ["block", "density", "dense step ms", "gossamer", "SparseLab", "A/A"]
    body = [
        [
            str(row["block"]), f"{row['density']:.3g}", f"{row['rows'][0]['median'] * 1e3:.1f}",
            ratio(row, "gossamer"), ratio(row, "SparseLab") if row["block"] == 1 else "",
            f"{row['control']['ratio']:.2f}x",
        ]
        for row in rows
    ]  # fmt: skip
    return table(head, body)


def explain(rows: Rows) -> str:
    return "\n" + "\n".join(f"    {line}".rstrip() for line in rows[0]["text"]) + "\n"


def regret(rows: Rows) -> str:
    head = ["mask", "chosen", "best", "regret", "chosen, of dense", "to decide"]
    body = [
        [
            row["mask"], row["chosen"], row["best"], f"{row['regret']:.2f}",
            f"{row['seconds'] / row['dense_seconds']:.2f}", f"{row['decide'] * 1e6:.0f} us",
        ]
        for row in rows
        if "chosen" in row
    ]  # fmt: skip
    total = rows[-1]
    summary = f"Median regret {total['median']:.2f}, largest {total['max']:.2f}; "
    return table(head, body) + f"\n{summary}the worst choice lost {total['max_loss']:.0%} of the dense product.\n"


TABLES: dict[str, Callable[[Rows], str]] = {
    "throughput": throughput,
    "scoring": scoring,
    "trained": trained,
    "refusal": refusal,
    "overhead": overhead,
    "shrinking": shrinking,
    "digits": digits,
    "tiles": tiles,
    "products": products,
    "break_even": break_even,
    "gradients": gradients,
    "detection": detection,
    "row_axis": row_axis,
    "column_axis": column_axis,
    "experts": workloads,
    "workloads": workloads,
    "training": training,
    "explain": explain,
    "regret": regret,
    **conv_tables.TABLES,
    **decode_tables.TABLES,
}


PLAIN = ("explain", "regret", "scoring", "training.zeros", "quality")  # sections without interleaved ratios


def _caption(where: dict[str, Any], name: str) -> str:
    versions = where["versions"]
    return (
        f"\n{where['cpu']}{', ' + where['gpu'] if where['gpu'] else ''}, {where['threads']} threads, "
        f"{where['isa']}, torch {versions['torch']}, commit {where['commit']}, {where['date']}."
        f"{'' if name in PLAIN else ' Ratios are medians of interleaved rounds with their quartiles.'}\n"
    )


def _fill(match: re.Match[str]) -> str:
    start, file, name, _, end = match.groups()
    path = RESULTS / f"{file}.json"
    fill = TABLES.get(f"{path.stem} {name}") or TABLES.get(name)
    if fill is None:
        raise SystemExit(f"table names {name!r}; expected one of {list(TABLES)}")
    section = name.partition(".")[0]
    found = json.loads(path.read_text())["sections"].get(section) if path.exists() else None
    if found is None:  # said in the page itself: a table must not stand there without its rows
        command = f"gossamer bench {path.stem} --only {section} --json {path.relative_to(ROOT)}"
        return f"{start}*Not measured yet: `{command}`.*\n{end}"
    return start + fill(found["rows"]) + _caption(found["environment"], name) + end


def main() -> None:
    stale = []
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        before = page.read_text()
        after = MARK.sub(_fill, before)
        if after != before:
            stale.append(page.relative_to(ROOT))
            if "--check" not in sys.argv:
                page.write_text(after)
    if stale and "--check" in sys.argv:
        raise SystemExit(f"tables differ from benchmarks/results: {', '.join(map(str, stale))}; run `make docs`")


if __name__ == "__main__":
    main()
