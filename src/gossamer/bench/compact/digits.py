"""The main job, as a user types it: `gossamer train` on the bundled digits, once per seed, in its own process."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from gossamer.bench import Settings


def rows(settings: Settings) -> list[dict[str, Any]]:
    """One row per seed with what report.json says, and a last row with means and the largest gap."""
    out = []
    for seed in settings.seeds:
        with tempfile.TemporaryDirectory() as scratch:
            target = Path(scratch) / "run"
            command = [sys.executable, "-m", "gossamer.cli", "train", "--seed", str(seed), "--out", str(target)]
            command += ["--device", settings.device]
            if settings.quick:
                command += ["--epochs", "2"]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            report = json.loads((target / "report.json").read_text())
        out.append(
            {
                "seed": seed, "config": report["config"], "table": report["table"],
                "channels_left": report["curves"]["sparse"][-1]["channels"],
                "latency": report["latency"], "throughput": report["throughput"],
            }
        )  # fmt: skip
    accuracy = {key: [row["table"][key]["accuracy"] for row in out] for key in ("dense", "sparse", "compact")}
    out.append(
        {
            "seed": "mean",
            "accuracy": {key: statistics.mean(values) for key, values in accuracy.items()},
            "gap": statistics.mean(accuracy["dense"]) - statistics.mean(accuracy["compact"]),
        }
    )
    return out
