"""`gossamer calibrate MODEL --out FILE`: which key heads of a model may stream."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro

from gossamer import files
from gossamer.cli.flags import check_new, text_of, use_device, use_threads
from gossamer.owned import Record
from gossamer.serving.calibrating.calibration import calibrate
from gossamer.serving.calibrating.passkeys import Passkeys, passkeys
from gossamer.serving.checkpoints.loading import load
from gossamer.serving.geometry import Geometry
from gossamer.serving.heads import NAME, HeadPattern

_LARGEST = 1 << 26
OURS = Record(
    "config.json", "gossamer.calibration", 1, "calibration", (("sink_size", int), ("recent_size", int)),
    "nothing here is replaced; choose another --out",
)  # fmt: skip
"""What says that a folder holds gates of this command: models have a config.json too, which is worth more."""


@dataclass(frozen=True)
class Calibrate:
    """Measure which key heads of a model look for things anywhere, and which need the first and last tokens only."""

    model: Annotated[str, tyro.conf.Positional]
    """A name of `gossamer model`, a folder of Hugging Face's or with a .gguf, or a .gguf file."""
    out: Path
    """The file of gates; a folder, or a name without an ending, gets full_attention_heads.tsv and config.json. Such a
    folder is new, empty, or one that an earlier calibration wrote."""
    static: float = 0.5
    """Share of key heads for which it is said what would stream."""
    steps: int = 200
    """Texts that are read, one a step."""
    length: int = 2048
    """Tokens of each text, before the answer."""
    keys: int = 10
    """Pass keys hidden in each."""
    sink: int = 128
    """First tokens that a head which streams sees."""
    local: int = 256
    """Last tokens that it sees."""
    text: Path | None = None
    """What the keys are hidden in, a text in UTF-8; Python's own documentation when not given."""
    learning_rate: float = 0.02
    """Of the gates."""
    regularization: float = 0.05
    """What the mean gate costs, beside the change of the hidden states."""
    seed: int = 0
    """Of the texts."""
    overwrite: bool = False
    """Replace gates that are at --out already."""
    recompute: bool = False
    """Less memory and a third more time."""
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Of the weights; as they were saved when not given."""
    device: str = "cpu"
    """Where the model runs."""
    threads: int | None = None
    """CPU threads; torch's own choice when not given."""
    debug: bool = False
    """Show the traceback of an error."""


def run(config: Calibrate) -> None:
    """Calibrate, print the gates and write them, whole or not at all."""
    use_threads(config.threads)
    if not 0 <= config.static <= 1:
        raise ValueError(f"--static must be from 0 to 1, got {config.static}")
    folder = config.out.is_dir() or not config.out.suffix
    text = None if config.text is None else text_of("--text", config.text, limit=_LARGEST)
    use_device(config.device)
    _check_out(config, folder)
    try:
        pattern, geometry = _measure(config, text)
    except KeyboardInterrupt:
        print("\nstopped; nothing was written", file=sys.stderr)
        raise
    print(table(pattern, geometry, config.static))
    if folder:
        how = {"model": config.model, "steps": config.steps, "length": config.length, "keys": config.keys,
               "learning_rate": config.learning_rate, "regularization": config.regularization,
               "seed": config.seed, "text": None if config.text is None else config.text.name}  # fmt: skip
        OURS.write(config.out, sink_size=config.sink, recent_size=config.local, **how)
    pattern.save(config.out / NAME if folder else config.out)
    print(f"\nwritten: {config.out}")


def _check_out(config: Calibrate, folder: bool) -> None:
    """Raise unless --out can be written and is new, or is what an earlier calibration wrote and --overwrite was given.

    Raises:
        FileExistsError, ValueError, OSError: naming --out.
    """
    out = config.out
    model = os.path.expanduser(config.model)
    if os.path.lexists(model) and os.path.realpath(out) == os.path.realpath(model):
        raise ValueError(f"--out {out} is the model itself; name another place for what is measured about it")
    if not folder:
        check_new("--out", out, "a table of gates", HeadPattern.load, overwrite=config.overwrite)
        return
    for name in (NAME, OURS.file):
        files.check_target(out / name)
    if OURS.find(out, "--out ") is not None and not config.overwrite:
        raise FileExistsError(
            f"--out {out} holds a calibration already; --overwrite replaces it, or name another place"
        )


def _measure(config: Calibrate, text: str | None) -> tuple[HeadPattern, Geometry]:
    from tqdm import tqdm

    loaded = load(config.model, dtype=config.dtype, device=config.device)
    with tqdm(total=config.steps, disable=not sys.stderr.isatty(), unit="step") as bar:

        def progress(done: int, steps: int, distance: float, mean: float) -> None:
            bar.set_postfix_str(f"distance {distance:.4f}, mean gate {mean:.2f}", refresh=False)
            bar.update()

        pattern = calibrate(
            loaded.model, _samples(loaded.model, loaded.tokenizer, text), sink=config.sink, local=config.local,
            steps=config.steps, length=config.length, keys=config.keys, learning_rate=config.learning_rate,
            regularization=config.regularization, seed=config.seed, recompute=config.recompute, progress=progress,
        )  # fmt: skip
    return pattern, Geometry.of(loaded.model.config)


def _samples(model: Any, tokenizer: Any, text: str | None) -> Passkeys:
    if tokenizer is not None:
        return passkeys(tokenizer, text)
    if text is not None:
        raise ValueError("--text is for models with a tokenizer; this one has none")
    return passkeys(vocabulary=model.get_input_embeddings().weight.shape[0])


def table(pattern: HeadPattern, geometry: Geometry, static: float) -> str:
    """A digit for each gate, and what would stream.

    >>> import torch
    >>> from gossamer.serving.geometry import LayerShape
    >>> geometry = Geometry((LayerShape(2, 1, 16, None), LayerShape(2, 1, 16, 64)), None)
    >>> print(table(HeadPattern(torch.tensor([[0.97, 0.31], [1, 1]], dtype=torch.float64)), geometry, 0.25))
    layer  gates in tenths
        0  93
        1  ww
    w: the layer has a window of its own
    1 of 2 heads (50 %) have gates below 0.5; with static=0.25 1 stream, with gates up to 0.31
    """
    lines = ["layer  gates in tenths"]
    full = torch.tensor([layer.window is None for layer in geometry.layers], device="cpu")
    for at, gates in enumerate(pattern.gates):
        digits = "".join(str(min(int(10 * gate), 9)) for gate in gates.tolist())
        lines.append(f"{at:>5}  {digits if full[at] else 'w' * len(digits)}")
    if not bool(full.all()):
        lines.append("w: the layer has a window of its own")
    gates, streaming = pattern.gates[full], pattern.streaming(static)[full]
    below, count, chosen = int((gates < 0.5).sum()), gates.numel(), int(streaming.sum())
    most = f", with gates up to {float(gates[streaming].max()):.2f}" if chosen else ""
    lines.append(
        f"{below} of {count} heads ({100 * below / count:.0f} %) have gates below 0.5; with static={static:g} {chosen} "
        f"stream{most}"
    )
    return "\n".join(lines)
