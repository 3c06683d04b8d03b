"""The flags of `gossamer train`. Every field is a flag; its docstring is the flag's help."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

DIGEST = "data_digest"
"""The setting that says what --data held; runs that were begun before there was one go on without."""


@dataclass(frozen=True)
class Train:
    """Train a network sparse from scratch, remove channels on the way, and compare with the dense network.

    Trains (a) the dense baseline and (b) the sparse network with the same steps and seed, then (c) cuts the removed
    channels out, measures all three and writes report.json, report.html and compact/ into --out. Ctrl-C saves and
    stops; --resume goes on with the very same numbers. Also runs under torchrun: torchrun --nproc-per-node 2 -m
    gossamer.cli train.
    """

    method: str = "chase"
    """How to train: static, set, rigl, snfs, mest, granet, gradual, srigl or chase."""
    density: float = 0.1
    """Share of the weights in use at the end, above 0 and at most 1."""
    channel_sparsity: float | None = None
    """Share of the channels to remove (chase only; by default 0.4)."""
    scope: str = "inner"
    """Which channels may go (chase only): inner to a block, or all, those of residual streams too."""
    compact_every: int | None = None
    """Cut removed channels out during training, after every K-th removal (chase only); by default only at the end."""
    model: str = "convnet"
    """mlp, convnet, resnet20, resnet34, resnet50, fixup_resnet50, vgg16, vgg16_plain, vit, or a factory: module:factory
    or path/to/file.py:factory."""
    data: str = "digits"
    """digits (bundled with scikit-learn), imagefolder:PATH (one folder per class) or npz:PATH (arrays x and y)."""
    epochs: int = 20
    """Passes over the training data; more of them beside --resume make a run longer."""
    batch_size: int = 64
    """Examples per step, over all processes."""
    optimizer: str | None = None
    """sgd (Nesterov momentum 0.9) or adamw; by default adamw for vit and sgd for the others."""
    lr: float | None = None
    """Highest learning rate, reached after the warm-up and lowered to 0 on a cosine; by default 0.1 or 0.003."""
    weight_decay: float | None = None
    """By default 0.0005 for sgd and 0.05 for adamw."""
    warmup: float = 0.05
    """Share of the steps in which the learning rate rises."""
    update_every: int | None = None
    """Steps between two changes of the pattern; by default a fiftieth of all steps."""
    seed: int = 0
    """Of the initial weights, the pattern, the order of the data and its split."""
    out: Path = Path("runs/train")
    """Folder of everything this run writes."""
    resume: bool = False
    """Continue the run in --out where it stopped; start it if there is none."""
    overwrite: bool = False
    """Delete the run in --out first."""
    dense: bool = True
    """Train the dense baseline too; without it nothing is said about accuracy lost."""
    device: str = "cpu"
    """cpu, cuda or cuda:N."""
    threads: int | None = None
    """CPU threads; torch's own choice when not given."""
    image_size: int | None = None
    """Resize the images of an imagefolder to this many pixels on both edges."""
    test_fraction: float = 0.2
    """Share of each class held out for testing, where the data has no test part of its own."""
    checkpoint_every: int = 1
    """Epochs between two checkpoints."""
    reps: int = 15
    """Rounds of the timing at the end, the networks taking turns; 0 leaves the timing out."""
    measure_batch: int = 256
    """Images per call when throughput is measured."""
    events: bool = True
    """Write TensorBoard events to --out/events."""
    debug: bool = False
    """Show the traceback of an error."""

    def identity(self, processes: int, digest: str = "") -> dict[str, Any]:
        """What decides the numbers of a run: a checkpoint of another identity is refused.

        Args:
            digest: of what --data held when it was read; empty: not known.
        """
        aside = ("out", "resume", "overwrite", "dense", "device", "threads", "checkpoint_every", "reps", "events",
                 "measure_batch", "debug")  # fmt: skip
        said = {key: value for key, value in asdict(self).items() if key not in aside} | {"processes": processes}
        return said | ({DIGEST: digest} if digest else {})


def check(config: Train) -> None:
    """Raise a ValueError naming the flag for a value that can never work."""
    positive = ("epochs", "batch_size", "update_every", "image_size", "checkpoint_every", "measure_batch",
                "compact_every")  # fmt: skip
    for name in positive:
        value = getattr(config, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name.replace('_', '-')} is {value}; expected at least 1")
    if not 0 < config.density <= 1:
        raise ValueError(f"--density is {config.density}; expected above 0 and at most 1")
    if config.channel_sparsity is not None and not 0 <= config.channel_sparsity < 1:
        raise ValueError(f"--channel-sparsity is {config.channel_sparsity}; expected at least 0 and below 1")
    if config.lr is not None and not 0 < config.lr < float("inf"):
        raise ValueError(f"--lr is {config.lr}; expected a positive number")
    for name in ("weight_decay", "reps", "seed"):
        value = getattr(config, name)
        if value is not None and not 0 <= value < float("inf"):
            raise ValueError(f"--{name.replace('_', '-')} is {value}; expected 0 or more")
    if not 0 <= config.warmup <= 1:
        raise ValueError(f"--warmup is {config.warmup}; expected a share of the steps between 0 and 1")
    if config.optimizer not in (None, "sgd", "adamw"):
        raise ValueError(f"--optimizer is {config.optimizer!r}; expected sgd or adamw")
    if config.seed >= 2**63:
        raise ValueError(f"--seed is {config.seed}; expected below 2**63")
    for name in ("out", "model", "data"):
        text = str(getattr(config, name))
        try:
            text.encode()
        except UnicodeEncodeError:
            raise ValueError(f"--{name} is {text!r}; expected a name in UTF-8, as the report repeats it") from None
    if config.resume and config.overwrite:
        raise ValueError("--resume continues the run that --overwrite deletes; expected one of them")
