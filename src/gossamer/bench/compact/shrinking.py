"""Training that gets faster as it goes: Chase with `compact_every` against a dense run of the same length.

Dense and shrinking steps alternate, so both see the same machine. The row holds the sum of step times of each run,
channel events and compactions included, and the median step at the end.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator

import torch

import gossamer as gs
from gossamer.bench.cells import value
from gossamer.bench.section import Row, Section, Settings, Table
from gossamer.bench.step import training_step
from gossamer.measure import clock
from gossamer.measure.interleave import turns

DENSE, CONTROL, OURS = "dense", "dense (control)", "chase"


def rows(settings: Settings) -> Iterator[Row]:
    """One row per model: total step time of the shrinking run over the dense run, with a dense A/A control."""
    for name, length in (("vgg16", 300), ("convnet", 400), ("resnet20", 400)):
        shape, batch, steps = (3, 32, 32), 32, 40 if settings.quick else length
        runs: dict[str, list[float]] = {DENSE: [], CONTROL: [], OURS: []}
        trainers, methods = {}, {}
        for key in runs:
            torch.manual_seed(0)
            model = gs.models.build(name, input_shape=shape, classes=10).to(settings.device)
            optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
            if key == OURS:
                methods[key] = gs.training.Chase(
                    model, optimizer, density=0.1, channel_sparsity=0.5, total_steps=steps, explore_every=steps // 20,
                    channel_every=steps // 20, compact_every=2, scope="all", round_to=16, seed=0,
                    example_inputs=torch.randn(1, *shape, device=settings.device),
                )  # fmt: skip
            trainers[key] = (model, optimizer)
        generator = torch.Generator().manual_seed(0)
        for step in range(steps):
            x = torch.randn(batch, *shape, generator=generator).to(settings.device)
            y = torch.randint(0, 10, (batch,), generator=generator).to(settings.device)
            for key in turns(list(runs), step):
                run = training_step(*trainers[key], x, y)
                start = clock.now()
                run()
                if settings.device == "cuda":
                    torch.cuda.synchronize()
                runs[key].append(clock.now() - start)
        total = {key: sum(times) for key, times in runs.items()}
        last = {key: statistics.median(times[-steps // 10 :]) for key, times in runs.items()}
        yield {
            "model": name, "batch": batch, "steps": steps, "channel_sparsity": 0.5,
            "seconds": total, "last_step": last,
            "over_dense": total[OURS] / total[DENSE], "control": total[CONTROL] / total[DENSE],
            "channels_left": sum(int(a.sum()) for a in methods[OURS].channels().values()),
        }  # fmt: skip


COLUMNS = (
    ("model", value("model")), ("steps", value("steps")), ("channel sparsity", value("channel_sparsity", ".0%")),
    ("sum of step times over dense", value("over_dense", ".2f")), ("A/A", value("control", ".2f")),
    ("last steps over dense", lambda row: f"{row['last_step'][OURS] / row['last_step'][DENSE]:.2f}"),
)  # fmt: skip


SECTION = Section(rows, Table(COLUMNS))
