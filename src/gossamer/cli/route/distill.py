"""`gossamer route distill MODEL`: teach a router which layers the tokens of a model need."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import tyro

from gossamer import files
from gossamer.cli.flags import check_new, use_threads
from gossamer.cli.route.texts import check_run, pieces, read
from gossamer.data.digest import digest
from gossamer.routing import saved
from gossamer.routing.keys import KeyPolicy
from gossamer.routing.learning.fit import History
from gossamer.routing.learning.training import distill
from gossamer.routing.radial import Radial
from gossamer.serving.checkpoints.loading import load

_LARGEST = 1 << 30


@dataclass(frozen=True)
class Distill:
    """Train a router, and small adapters in place of skipped layers, on what a model says; its weights stay."""

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """A name of `gossamer model`, a folder of Hugging Face's or with a .gguf, or a .gguf file."""
    budget: float = 0.8
    """Share of the layers' multiply-adds that a token spends in the mean, router and adapters included."""
    out: Path = Path("router.safetensors")
    """The file for the router; a run that was stopped goes on with the one beside it, .run."""
    text: tuple[Path, ...] = ()
    """Files of text in UTF-8; Python's own documentation when not given."""
    tokens: int = 100_000
    """How many tokens of them are used, at most; they come again when there are more steps."""
    length: int = 128
    """Tokens of a text."""
    steps: int = 200
    """Steps of training, each with one text of --length tokens."""
    lr: float = 1e-3
    """Learning rate of router and adapters."""
    kv: KeyPolicy = "propagate"
    """What a token leaves in layers that it skips: nothing (sparse), or keys of the state with which it passes by."""
    units: Literal["block", "branch"] = "block"
    """Layers are skipped whole, or attention and MLP each."""
    adapter: int = 32
    """Rank of what takes the place of a skipped layer; 0: nothing does."""
    joint: bool = False
    """Texts that generate together choose together."""
    seed: int = 0
    """Of the router's first weights and of the order of texts."""
    json: Path | None = None
    """A file for the numbers of each step."""
    overwrite: bool = False
    """Replace a router, and numbers, that are there already."""
    threads: int | None = None
    """CPU threads; torch's own choice when not given."""
    debug: bool = False
    """Show the traceback of an error."""


def run(config: Distill) -> None:
    """Train, write the router, say what a token spends."""
    import torch

    use_threads(config.threads)
    texts = read(config.text)
    check_new("--out", config.out, "a router", partial(saved.read, kind="router"), overwrite=config.overwrite)
    if config.json is not None:
        check_new("--json", config.json, "the numbers of a run", _numbers, overwrite=config.overwrite)
    loaded = load(config.model, dtype=torch.float32, attn_implementation="sdpa")
    batches = [each for each in pieces(loaded, texts, config.tokens, config.length) if each.shape[1] > 1]
    whole = [each for each in batches if each.shape[1] == batches[0].shape[1]]
    torch.manual_seed(config.seed)
    radial = Radial(
        loaded.model.requires_grad_(False), kv=config.kv, units=config.units, adapter=config.adapter, joint=config.joint
    )
    order = torch.randperm(len(whole), generator=torch.Generator().manual_seed(config.seed), device="cpu").tolist()
    checkpoint = config.out.with_name(config.out.name + ".run")
    texts_now = digest({f"{at}": batch for at, batch in enumerate(whole)})
    check_run(checkpoint, texts_now, "--text, --tokens and --length")
    history = distill(
        radial.train(), None, [whole[at] for at in order], budget=config.budget, steps=config.steps, lr=config.lr,
        seed=config.seed, checkpoint=checkpoint, source=texts_now,
    )  # fmt: skip
    saved.save_state(radial.eval(), config.out)
    checkpoint.unlink(missing_ok=True)
    if config.json is not None:
        files.write_json(config.json, {"steps": history.records, "settled": history.settled})
    print(outcome(history, config.budget))
    print(f"written: {config.out}; use it with: gossamer generate {config.model} --router {config.out}")


def _numbers(path: Path) -> None:
    """Raise a ValueError unless a file holds what --json writes."""
    record = files.parse_json(files.read(path, limit=_LARGEST))
    if not isinstance(record, dict) or record.keys() != {"steps", "settled"}:
        raise ValueError("it does not consist of 'steps' and 'settled'")


def outcome(history: History, budget: float | None) -> str:
    """How a run began and ended, in three lines."""
    few = max(len(history) // 10, 1)
    first = sum(history["text"][:few]) / few
    lines = [f"text: loss {first:.3f} at first, {history.mean('text', few):.3f} at the end ({len(history)} steps)"]
    lines.append(f"a token runs {history.mean('depth', few):.1f} units in the mean")
    if budget is not None:
        spent = history.mean("cost", few) if history.settled is None else history.settled
        lines.append(f"it spends {spent:.1%} of the layers' multiply-adds; the budget was {budget:.1%}")
    return "\n".join(lines)
