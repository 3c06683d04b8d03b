"""Chase on the bundled digits: `gossamer train`, whose whole report the card links."""

from __future__ import annotations

from pathlib import Path

from gossamer import files
from gossamer.cli.tour.card import Card, Outcome, Say, Timed
from gossamer.cli.train.command import run as train
from gossamer.cli.train.config import Train
from gossamer.report.quantity import percent, times

EPOCHS, LIMIT = 20, 1 << 26


def run(folder: Path, say: Say, quick: bool) -> Outcome:
    say("the digits, dense and then sparse, with a tenth of the weights")
    out = folder / "report"
    epochs = 1 if quick else EPOCHS
    flags = ["--epochs", str(epochs), "--reps", "5" if quick else "15", "--out", str(out), "--overwrite"]
    train(Train(epochs=epochs, reps=5 if quick else 15, out=out, overwrite=True, events=False), flags)
    report = files.parse_json(files.read(out / "report.json", limit=LIMIT))
    dense, compact = report["table"]["dense"], report["table"]["compact"]
    throughput = {key: report["throughput"][key] for key in ("baseline", "rows", "control")}
    inside = {**throughput, "rows": [row for row in throughput["rows"] if row["name"] != "compact"]}
    batch = report["throughput"]["batch"]
    gain = Timed(
        f"{batch} images at once: the dense network, the sparse one with its zeros inside, and what is left of that "
        "one after channels were cut out",
        "compact", throughput,
    )  # fmt: skip
    loses = Timed(
        "the same images: zeros inside a dense tensor are multiplied like any number, so until channels are cut out "
        "nothing is faster",
        "sparse", inside,
    )  # fmt: skip
    facts = (
        (percent(compact["accuracy"], 1), f"test accuracy; dense {percent(dense['accuracy'], 1)}"),
        (times(dense["parameters"] / compact["parameters"]), "fewer parameters than dense"),
        (times(dense["flops"] / compact["flops"]), "fewer multiply-adds than dense"),
    )
    return Outcome(gain, loses, facts, (("the whole report of this run", "report/report.html"),))


CARD = Card(
    "Chase",
    "My network is too large: train it sparse, get a smaller dense one",
    "Weights move while the network trains, channels that have lost theirs are removed, and what is left is cut out as "
    "an ordinary, smaller network with the same outputs.",
    "Until channels are cut out the zeros lie inside dense tensors: training is not faster, and a network without "
    "removed channels gains nothing.",
    """
method = gs.training.Chase(model, optimizer, density=0.1, channel_sparsity=0.4, total_steps=steps)
...  # your training loop, as it is
method.detach()
small = gs.compact(model, x).model
""",
    "docs/compaction.md",
    run,
)
