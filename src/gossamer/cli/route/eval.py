"""`gossamer route eval MODEL`: how well a model foretells text, routed and not, and what a token costs."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from torch import Tensor

from gossamer import files
from gossamer.cli.flags import use_threads
from gossamer.cli.route.texts import pieces, read
from gossamer.measure import clock
from gossamer.routing.learning.diagnosis import health
from gossamer.routing.radial import Radial
from gossamer.routing.saved import load_routed
from gossamer.serving.checkpoints.loading import load


@dataclass(frozen=True)
class Eval:
    """Measure perplexity, multiply-adds per token and time, of the whole model and of the routed one."""

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """A name of `gossamer model`, a folder of Hugging Face's or with a .gguf, or a .gguf file."""
    router: Path | None = None
    """A file of `gossamer route distill`; the folder's own, or none, when not given."""
    text: tuple[Path, ...] = ()
    """Files of text in UTF-8; Python's own documentation when not given."""
    tokens: int = 4096
    """How many tokens of them are read, at most."""
    length: int = 256
    """Tokens that are read at a time; each piece is a text of its own."""
    json: Path | None = None
    """A file for the numbers."""
    threads: int | None = None
    """CPU threads; torch's own choice when not given."""
    debug: bool = False
    """Show the traceback of an error."""


@torch.no_grad()
def rate(radial: Radial, batches: Iterable[Tensor]) -> float:
    """Tokens a second of texts that are read one after the other."""
    begun, tokens = clock.now(), 0
    for batch in batches:
        radial(batch, logits_to_keep=1)
        tokens += batch.numel()
    return tokens / (clock.now() - begun)


def run(config: Eval) -> None:
    """Measure, print a table."""
    from tqdm import tqdm

    use_threads(config.threads)
    texts = read(config.text)
    if config.json is not None:
        files.check_target(config.json)
    router = config.router or _own(config.model)
    loaded = load(config.model, attn_implementation="sdpa")
    batches = [each for each in pieces(loaded, texts, config.tokens, config.length) if each.shape[1] > 1]
    if not batches:
        raise ValueError("--text must have at least 2 tokens")
    ways = {"all layers": Radial(loaded.model, "sequential").eval()}
    if router is not None:
        ways["routed"] = load_routed(loaded.model, router)
    found: dict[str, Any] = {}
    for name, radial in ways.items():
        bar = tqdm(batches, desc=name, disable=not sys.stderr.isatty(), unit="text", leave=False)
        said = health(radial, bar)
        found[name] = asdict(said) | {"perplexity": math.exp(said.loss), "tokens_per_second": rate(radial, batches)}
    print(f"{config.model}: {found['all layers']['tokens']:,} tokens, {config.length} at a time\n")
    print(f"{'':<12} {'perplexity':>11} {'multiply-adds':>14} {'units a token':>14} {'tokens/s':>9}")
    for name, each in found.items():
        units = f"{sum(each['usage']):.1f} of {len(each['usage'])}"
        print(
            f"{name:<12} {each['perplexity']:>11.3f} {each['cost']:>14.1%} {units:>14} "
            f"{each['tokens_per_second']:>9.0f}"
        )
    if "routed" in ways:
        print(f"\n{said}")
    if config.json is not None:
        files.write_json(config.json, found)
        print(f"\nwritten: {config.json}")


def _own(model: str) -> Path | None:
    """The router that `gossamer route train` put into a model's folder."""
    path = Path(model) / "router.safetensors"
    return path if path.is_file() else None
