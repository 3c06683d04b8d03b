"""Run `gossamer train`: check, train dense and sparse, compact, measure, report."""

from __future__ import annotations

import dataclasses
import shlex
import sys
import textwrap
import warnings
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import torch

from gossamer import compaction, data, extras, measure, report
from gossamer.cli.flags import use_threads
from gossamer.cli.resume import again, continued, settings
from gossamer.cli.stop import Stopped, catch_signals
from gossamer.cli.train import checkpoint, folder, outcome, recipe, record, story
from gossamer.cli.train.config import Train, check
from gossamer.cli.train.loop import Stage, train
from gossamer.cli.train.progress import Progress
from gossamer.cli.train.restore import restore
from gossamer.integrations.distributed import World, connected
from gossamer.integrations.tensorboard import Events

_PROGRAM = "gossamer train"


def main(arguments: Sequence[str]) -> None:
    """`gossamer train` with these flags."""
    try:
        run(continued(Train, _PROGRAM, arguments, folder.TRAIN.record), arguments)
    except KeyboardInterrupt:
        print(f"\nstopped; what was saved is continued with:\n  {_again(arguments)}", file=sys.stderr)
        raise


def _again(arguments: Sequence[str]) -> str:
    return again(Train, _PROGRAM, arguments, folder.TRAIN.record)


def run(config: Train, arguments: Sequence[str]) -> None:
    """Everything, from flags to the report; `arguments` are the flags as typed, for the report."""
    check(config)
    _needs(config)
    use_threads(config.threads)
    with _repeatable(), connected(config.device) as world:
        splits = _load(config, world)
        total = data.steps_per_epoch(len(splits.train_x), config.batch_size) * config.epochs
        config = _planned(config, total)
        stages = _stages(config, splits, total)
        _open(config, splits, world, stages, total)
        try:
            for stage in stages:
                _train(stage, splits, config, world)
        except Stopped as stopped:
            if world.first:
                print(f"\nstopped at {stopped}; resume with:\n  {_again(arguments)}", file=sys.stderr, flush=True)
            # Whoever starts the processes ends the others when the first one leaves.
            world.wait()
            raise
    if world.first:
        _finish(config, splits, stages, arguments, world.size)


@contextmanager
def _repeatable() -> Iterator[None]:
    """Convolution algorithms are chosen by shape, not by a race: a resumed run repeats the same sums."""
    cudnn = torch.backends.cudnn
    before = cudnn.deterministic, cudnn.benchmark
    cudnn.deterministic, cudnn.benchmark = True, False
    try:
        yield
    finally:
        cudnn.deterministic, cudnn.benchmark = before


def _needs(config: Train) -> None:
    """Raise an ImportError for a package that would be missed only after training."""
    for package in ("safetensors", *(("torch.utils.tensorboard",) if config.events else ())):
        name = package.rpartition(".")[2]
        advice = " (or --no-events)" if name == "tensorboard" else ""
        extras.needed(package, f"this run needs {name}{advice}", "run")


def _load(config: Train, world: World) -> data.Splits:
    splits = data.load(config.data, seed=config.seed, image_size=config.image_size, test_fraction=config.test_fraction)
    if config.batch_size % world.size:
        raise ValueError(f"--batch-size is {config.batch_size}; expected a multiple of the {world.size} processes")
    tensors = {name: getattr(splits, name).to(world.device) for name in ("train_x", "train_y", "test_x", "test_y")}
    return dataclasses.replace(splits, **tensors)


def _planned(config: Train, total: int) -> Train:
    """With `update_every` as a number: that of the run which is continued, also where it goes on for more epochs."""
    if config.update_every is not None:
        return config
    found = folder.TRAIN.record.find(config.out, "--out ") if config.resume else None
    every = None if found is None else found["identity"].get("update_every")
    return dataclasses.replace(config, update_every=every if type(every) is int else max(1, total // recipe.UPDATES))


def _stages(config: Train, splits: data.Splits, total: int) -> list[Stage]:
    """The dense and the sparse network before their first step, from the same initial weights."""
    out = []
    for name in ("dense", "sparse") if config.dense else ("sparse",):
        model = recipe.network(config, splits).to(splits.train_x.device)
        _probe(config, model, splits)
        optimizer = recipe.optimizer(config, model)
        method = recipe.method(config, model, optimizer, total, splits.train_x[:2]) if name == "sparse" else None
        out.append(Stage(name, model, optimizer, method))
    return out


def _probe(config: Train, model: torch.nn.Module, splits: data.Splits) -> None:
    """One forward, so that a network that does not fit the data is refused before anything is written."""
    model.eval()
    try:
        with torch.no_grad():
            logits = model(splits.train_x[:2])
    except Exception as error:
        shape = tuple(splits.input_shape)
        raise ValueError(f"model {config.model!r} fails on inputs of shape {shape}: {error}") from error
    if not isinstance(logits, torch.Tensor) or logits.shape != (2, splits.classes):
        got = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise ValueError(f"model {config.model!r} puts out {got} for 2 examples; expected (2, {splits.classes})")
    model.train()


def _file(config: Train, stage: str) -> Path:
    return config.out / stage / "checkpoint.pt"


def _open(config: Train, splits: data.Splits, world: World, stages: list[Stage], total: int) -> None:
    """Continue from the checkpoints in --out or make --out ready; nothing is written before all was read."""
    identity = config.identity(world.size, splits.digest)
    if folder.inspect(config.out, identity, resume=config.resume, overwrite=config.overwrite):
        for stage in stages:
            file = _file(config, stage.name)
            if file.exists():
                saved = checkpoint.load(file, identity, longer=folder.TRAIN.longer)
                try:
                    restore(stage, saved, total=total)
                except ValueError as error:
                    raise ValueError(f"checkpoint {file} does not fit the network of this run: {error}") from error
    world.wait()
    if world.first:
        folder.prepare(config.out, identity, overwrite=config.overwrite, settings=settings(config))
    world.wait()


def _train(stage: Stage, splits: data.Splits, config: Train, world: World) -> None:
    steps = data.steps_per_epoch(len(splits.train_x), config.batch_size)
    file, identity = _file(config, stage.name), config.identity(world.size, splits.digest)
    if stage.step == 0:
        record.snapshot(stage)
        record.epoch(stage, splits, number=0, steps=steps)
    channels = sum(len(cells) for cells in stage.snapshots[0]["density"].values()) if stage.snapshots else 0
    due = record.snapshot_epochs(config.epochs, channels)

    def save(stage: Stage) -> None:
        if world.first:
            checkpoint.save(file, {"identity": identity, **stage.state()})

    events = config.out / "events" / stage.name if config.events and world.first else None
    log = Events(events, resume_at=stage.step, suffix=folder.EVENTS)
    with (
        closing(log),
        Progress(stage.name, stage.step, steps * config.epochs, shown=world.first) as bar,
        catch_signals() as stop,
    ):

        def on_epoch(stage: Stage) -> None:
            number = stage.step // steps
            point = record.epoch(stage, splits, number=number, steps=steps)
            if number in due:
                record.snapshot(stage)
            log.scalars({key: value for key, value in point.items() if key not in ("step", "epoch")}, stage.step)
            bar.note(f"accuracy {point['accuracy']:.4f}")

        try:
            train(stage, splits, config, world, stop=stop, save=save, on_step=bar.to, on_epoch=on_epoch)
        except FloatingPointError as error:
            kept = f"the last good checkpoint {file} is kept" if file.exists() else "no checkpoint was written yet"
            raise FloatingPointError(f"{error}; {kept}; a smaller --lr may help") from error
    if stage.method is not None:
        stage.method.detach()


def _finish(config: Train, splits: data.Splits, stages: list[Stage], arguments: Sequence[str], processes: int) -> None:
    """Compact, measure, write the report, print the table."""
    sparse = stages[-1]
    # Without a trained baseline an untrained one still shows the time and the size that are saved.
    dense = stages[0].model if config.dense else recipe.network(config, splits).to(splits.train_x.device)
    sparse.model.eval()
    small, refused = _compact(sparse.model, splits.test_x[: config.measure_batch])
    networks = {"dense": dense.eval(), "sparse": sparse.model, "compact": small.model if small else sparse.model}
    table = outcome.table(networks, splits, untrained=not config.dense)
    timings = outcome.timings(networks, splits, config) if config.reps else {}
    outcome.add_timings(table, timings)
    channels = sparse.curve[-1].get("channels")
    page: dict[str, Any] = {
        "title": f"{config.model} on {config.data}",
        "table": table,
        **timings,
        "chance": splits.chance,
        "test_examples": len(splits.test_y),
        "unseen": splits.unseen,
        "curves": {stage.name: stage.curve for stage in stages},
        "channels": {"groups": list(sparse.snapshots[-1]["density"]), "snapshots": sparse.snapshots},
        "updates": sparse.method.history,
        "compaction": small.explain() if small else refused,
        "config": {**config.identity(processes), "device": config.device},
        "environment": measure.environment(),
        "command": shlex.join(["gossamer", "train", *arguments]),
    }
    page["summary"] = story.summary(config, sparse.curve[-1].get("density"), channels)
    page["facts"] = story.facts(page, None if channels is None else 1.0 - channels)
    page["notes"] = story.notes(page, config, refused)
    try:
        if small:
            small.save(config.out / "compact")
        written = report.write(config.out, page)
    except OSError as error:
        why = error.strerror or error
        raise OSError(
            f"{why}; the trained networks are saved in {config.out}, and --resume goes on from there"
        ) from error
    print(story.text_table(page))
    print()
    for note in page["notes"]:
        print(textwrap.fill(note, 100, initial_indent="- ", subsequent_indent="  "))
    print(f"\nreport: {written}" + (f"\ncompact network: {config.out / 'compact'}" if small else ""))
    if refused is not None and config.compact_every is None:
        print(f"nothing was removed: {refused}")


def _compact(model: torch.nn.Module, example: torch.Tensor) -> tuple[compaction.Compact | None, str | None]:
    """The compact network, if there is one, and why nothing was removed, if so.

    Whether it is faster is measured afterwards and said in the report. A network that depended on that would differ
    from machine to machine and between a run and its resumed twin, which are promised the same bits.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", compaction.CompactWarning)  # the report and the last lines say it
            small = compaction.compact(model, example, round_to=recipe.WIDTHS, check_latency=False)
        return small, small.refused
    except compaction.CaptureError as error:
        return None, str(error)
