"""`gossamer route train`: a language model from scratch whose tokens choose their layers."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from gossamer import files
from gossamer.cli.flags import use_threads
from gossamer.cli.route.distill import outcome
from gossamer.cli.route.texts import check_run
from gossamer.data.digest import digest
from gossamer.data.language import library, windows
from gossamer.extras import needed, no_progress_bars
from gossamer.owned import Record
from gossamer.routing import saved
from gossamer.routing.learning.training import train
from gossamer.routing.lm import RadialConfig, RadialLM

logger = logging.getLogger(__name__)

# What transformers' own savers and ours write: a folder with one of them holds a model already.
_WRITTEN = ("config.json", "model.safetensors", "tokenizer.json", "router.safetensors")
_CHECKPOINT = "training.run"
OURS = Record("run.json", "gossamer.route.train", 1, "model", advice="nothing here is replaced; choose another --out")
"""What says that a folder holds a model of this command, whose other files are named as those of anybody's models."""


@dataclass(frozen=True)
class Train:
    """Train on the sources of Python's library; write a folder that `gossamer generate` and transformers read."""

    out: Path = Path("radial-lm")
    """The folder for the model, its tokenizer and its router."""
    budget: float = 0.5
    """Share of the multiply-adds of all hops that a token spends in the mean."""
    mode: Literal["free", "skip", "sequential"] = "free"
    """free: any layer is next, again if a token likes; skip: any later one; sequential: all."""
    vocabulary: int = 2048
    """Tokens of the byte-pair encoding that is learned first."""
    width: int = 256
    """Of the states."""
    layers: int = 4
    """That have weights of their own."""
    hops: int = 8
    """How often a token may choose one, in mode free."""
    heads: int = 4
    """Of attention."""
    length: int = 128
    """Tokens of a text."""
    batch: int = 16
    """Texts of a step."""
    steps: int = 500
    """Of training."""
    lr: float = 2e-3
    """Learning rate of the model; the router has 2.5 times as much."""
    folder: Path | None = None
    """Sources to learn from; those of this Python when not given."""
    characters: int = 4_000_000
    """Of text, at most."""
    seed: int = 0
    """Of weights and of what is read when."""
    overwrite: bool = False
    """Replace a model that is in --out already."""
    threads: int | None = None
    """CPU threads; torch's own choice when not given."""
    debug: bool = False
    """Show the traceback of an error."""


def run(config: Train) -> None:
    """Train, write the folder, say how it went."""
    use_threads(config.threads)
    for flag, value, least in (("--batch", config.batch, 1), ("--length", config.length, 2),
                               ("--characters", config.characters, 1)):  # fmt: skip
        if value < least:
            raise ValueError(f"{flag} must be at least {least}, got {value}")
    if config.folder is not None and not config.folder.is_dir():
        raise ValueError(f"--folder: there is no folder {config.folder}")
    transformers = needed("transformers", "language models need transformers", "serving")
    sizes = RadialConfig(
        vocabulary=config.vocabulary, width=config.width, layers=config.layers, heads=config.heads,
        hops=config.hops if config.mode == "free" else None, context=max(512, config.length),
    )  # fmt: skip
    model = RadialLM(sizes, config.mode, seed=config.seed)
    _check_out(config.out, overwrite=config.overwrite)
    logger.info("reading sources and learning byte pairs")
    text = library(config.vocabulary, most=config.characters, folder=config.folder)
    drawn = windows(text.train, length=config.length, batch=config.batch, steps=config.steps, seed=config.seed)
    checkpoint = config.out / _CHECKPOINT
    read = f"{digest({'tokens': text.train})}, {config.batch} x {config.length} a step"
    check_run(checkpoint, read, "--folder, --characters, --vocabulary, --batch and --length")
    history = train(
        model.train(), drawn, budget=None if config.mode == "sequential" else config.budget, steps=config.steps,
        model_lr=config.lr, lr=2.5 * config.lr, seed=config.seed, checkpoint=checkpoint, source=read,
        on_step=lambda _: _mark(config.out),
    )  # fmt: skip
    _mark(config.out)  # of a run that had no step left
    with no_progress_bars():
        model.eval().model.save_pretrained(config.out)
        transformers.PreTrainedTokenizerFast(tokenizer_object=text.tokenizer).save_pretrained(config.out)
    saved.save_state(model, config.out / "router.safetensors")
    checkpoint.unlink(missing_ok=True)
    print(outcome(history, None if config.mode == "sequential" else config.budget))
    print(f"written: {config.out}; try: gossamer route eval {config.out}")


def _mark(out: Path) -> None:
    """Write down whose the folder is: before the first file in it, and not before flags have been found to work."""
    if not (out / OURS.file).exists():
        OURS.write(out)


def _check_out(out: Path, *, overwrite: bool) -> None:
    """Raise unless a model may be written to `out`: it is new, or of this command, unfinished or to be overwritten.

    Raises:
        FileExistsError: there is a model of this command, and `overwrite` is False; or files of others.
        NotADirectoryError, ValueError, OSError: it is no folder, its record is not ours, it cannot be written.
    """
    for name in (OURS.file, _CHECKPOINT, *_WRITTEN):
        files.check_target(out / name)
    there = [out / name for name in _WRITTEN if os.path.lexists(out / name)]
    if not there and os.path.lexists(out / _CHECKPOINT) and not os.path.lexists(out / OURS.file):
        saved.read(out / _CHECKPOINT, "run")  # a run that stopped before there was a record says itself whose it is
    elif OURS.find(out, "--out ") is not None and there and not overwrite:
        raise FileExistsError(f"--out {there[0]} is there already; --overwrite replaces it, or name another place")
