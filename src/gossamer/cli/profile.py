"""`gossamer profile MODEL DATA`: where the dynamic sparsity of a model is, and what using it would bring."""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import tyro

from gossamer import files
from gossamer.cli.flags import use_threads
from gossamer.cli.subject import Sizes, subject
from gossamer.profile.findings import KINDS
from gossamer.profile.page import write
from gossamer.profile.search import find_sparsity


@dataclass(frozen=True)
class Profile:
    """Measure where the dynamic sparsity of a model is on your data: zeros and small numbers in activations, padding,
    experts, layers, keys, channels, labels. Each is a number, what using it is expected to gain on this machine, and
    the command or the lines to try; what pays most comes first. The model is left as it is.
    """

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """What `gossamer train --model` takes (convnet, module:factory, ...), with pictures; or a language model: a name of
    `gossamer model`, minilm, a folder of Hugging Face's or with a .gguf, or a .gguf file."""
    data: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DATA")]
    """digits, npz:PATH or imagefolder:PATH (or the path alone); for language models a file of text in UTF-8, or token
    ids in a .npy file. An encoder reads each line as a text."""
    batch: int | None = None
    """Examples of a batch, as in use; 64 pictures, 32 texts of an encoder, 1 of a decoder."""
    length: int | None = None
    """Tokens of a text, at most; 512 for decoders, 128 for encoders."""
    samples: int | None = None
    """Examples that are read in all; 4 batches, 2 of a decoder."""
    kinds: tuple[str, ...] = ()
    """What to look for, all when not given: zeros, decoding, small, padding, experts, layers, attention, channels,
    width, labels."""
    error: float = 0.1
    """How far the outputs of layers may move when small inputs are left out, as a share of their length."""
    idle: float = 0.1
    """Contribution to a token's state up to which a token does not need a layer."""
    json: Path | None = None
    """A file for all numbers."""
    out: Path | None = None
    """A folder for a page, profile.html, and profile.json."""
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Of a language model's weights; as they were saved when not given."""
    threads: int | None = None
    """CPU threads; torch's own choice when not given."""
    debug: bool = False
    """Show the traceback of an error."""


def run(config: Profile) -> None:
    """Measure, print, write."""
    from tqdm import tqdm

    unknown = [kind for kind in config.kinds if kind not in KINDS]
    if unknown:
        raise ValueError(f"--kinds has {unknown[0]!r}; expected some of {', '.join(KINDS)}")
    for flag, value, fits in (
        ("error", config.error, 0 < config.error < 1),
        ("idle", config.idle, 0 <= config.idle <= 1),
    ):
        if not fits:
            raise ValueError(f"--{flag} must be a share of 1, got {value}")
    use_threads(config.threads)
    sizes = Sizes(config.batch, config.length, config.samples)
    if config.json is not None:  # no work is to end in an error that could be seen before
        files.check_target(config.json)
    if config.out is not None:
        config.out.mkdir(parents=True, exist_ok=True)
        files.check_target(config.out / "profile.html")
    given = subject(config.model, config.data, sizes, dtype=config.dtype)
    wanted = config.kinds or tuple(KINDS)
    with tqdm(total=len(wanted), disable=not sys.stderr.isatty(), leave=False, bar_format="{desc}") as bar:
        found = find_sparsity(
            given.model, given.batches, kinds=wanted, max_error=config.error, idle=config.idle, name=config.model,
            source=given.source, progress=lambda kind: bar.set_description_str(f"looking for {KINDS[kind]}"),
        )  # fmt: skip
    found = replace(found, notes=(*given.notes, *found.notes))
    print(found)
    written = [config.json] if config.json is not None else []
    if config.json is not None:
        found.to_json(config.json)
    if config.out is not None:
        command = shlex.join(["gossamer", "profile", config.model, config.data])
        written += write(config.out, found, command)
    if written:
        print(f"\nwritten: {', '.join(map(str, written))}")
