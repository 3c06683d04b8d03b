"""`gossamer route profile MODEL ...`: what each layer contributes to the states of tokens."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import tyro

from gossamer import files
from gossamer.cli.flags import use_device, use_threads
from gossamer.cli.route.texts import pieces, read
from gossamer.routing.profiling.overlay import MOST, overlay, summary
from gossamer.routing.profiling.profiling import profile
from gossamer.serving.checkpoints.loading import load


@dataclass(frozen=True)
class Profile:
    """Measure for each layer, its attention and its MLP which share of a token's state is their work.

    The share is ||f(h)|| / ||h + f(h)||: 100 % where a layer makes the state anew, near 0 where skipping it would
    change nothing. Its median and quartiles over all tokens are printed for each layer, and its block influence,
    1 - mean cos(h, h + f(h)). Several models, up to six, are laid over each other by depth.
    """

    models: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="MODEL [MODEL ...]")]
    """Names of `gossamer model`, folders of Hugging Face's or with a .gguf, or .gguf files."""
    text: tuple[Path, ...] = ()
    """Files of text in UTF-8; Python's own documentation when not given."""
    tokens: int = 2048
    """How many tokens of them are read, at most."""
    length: int = 512
    """Tokens that are read at a time; each piece is a text of its own."""
    json: Path | None = None
    """A file for all numbers; of several models as a list, profiles."""
    html: Path | None = None
    """A file for a page with plots."""
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Of the weights; as they were saved when not given."""
    device: str = "cpu"
    """Where the model runs."""
    threads: int | None = None
    """CPU threads; torch's own choice when not given."""
    debug: bool = False
    """Show the traceback of an error."""


def run(config: Profile) -> None:
    """Measure, print the table, write the files."""
    from tqdm import tqdm

    use_threads(config.threads)
    use_device(config.device)
    if not 1 <= len(config.models) <= MOST:
        raise ValueError(f"MODEL must be given 1 to {MOST} times, got {len(config.models)}")
    texts = read(config.text)
    for target in (config.json, config.html):  # no work is to end in an error that could be seen before
        if target is not None:
            files.check_target(target)
    found, weights = [], []
    for name in config.models:
        loaded = load(name, dtype=config.dtype, device=config.device)
        batches = pieces(loaded, texts, config.tokens, config.length)
        one = profile(loaded.model, tqdm(batches, disable=not sys.stderr.isatty(), unit="piece", leave=False))
        found.append(replace(one, model=f"{name} ({one.model})"))
        weights.append(str(loaded.model.dtype).removeprefix("torch."))
        print(found[-1])
    if len(found) > 1:
        print(f"\n{summary(found)}")
    if config.json is not None:
        plain = [one.to_dict() for one in found]
        files.write_json(config.json, {"profiles": plain} if len(plain) > 1 else plain[0])
    if config.html is not None:
        said = ", ".join(path.name for path in config.text) or "Python's documentation of its language"
        source = f"Text: {said}, {config.length} tokens at a time. Weights: {', '.join(dict.fromkeys(weights))}."
        if len(found) > 1:
            overlay(found, config.html, source=source)
        else:
            found[0].to_html(config.html, source=source)
    written = [str(path) for path in (config.json, config.html) if path is not None]
    if written:
        print(f"\nwritten: {', '.join(written)}")
