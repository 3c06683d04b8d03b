"""`gossamer xmc train DATA`: train, choose the best epoch by the validation part, test, report."""

from __future__ import annotations

import hashlib
import shlex
import signal
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from torch import Tensor

from gossamer import files, measure
from gossamer.cli.flags import use_threads
from gossamer.cli.resume import again, continued, settings
from gossamer.cli.stop import Stopped, catch_signals
from gossamer.cli.train import checkpoint, folder
from gossamer.cli.train.config import DIGEST
from gossamer.cli.train.progress import Progress
from gossamer.cli.xmc.report import write
from gossamer.data.digest import digest
from gossamer.integrations.distributed import World, connected
from gossamer.ranks import ALONE, Ranks
from gossamer.xmc import data
from gossamer.xmc.classifier import Classifier, clear, load
from gossamer.xmc.data import Csr, DataSet, Part, Texts
from gossamer.xmc.data.formats.lines import shown
from gossamer.xmc.data.layouts import recognise
from gossamer.xmc.encoders import Inputs
from gossamer.xmc.fit import Examples, Fit, train
from gossamer.xmc.heads.wide import WideHead
from gossamer.xmc.metrics import Scores, inverse_propensity
from gossamer.xmc.predict import evaluate
from gossamer.xmc.recipe import Recipe

K = 5
RUN = folder.Kind(
    "gossamer.xmc.run",
    {"": ("run.json", "checkpoint.pt", "report.json", "report.html"), "classifier": ()},
)


@dataclass(frozen=True, kw_only=True)
class Train(Recipe):
    """Train a classifier over many labels: an encoder and a head of fixed fan-in.

    The epoch that is best on the validation part is kept, and measured once on the test part. Writes report.html and
    the classifier into --out. Ctrl-C saves and stops; --resume goes on with the very same numbers. Under torchrun the
    labels are divided among the processes.
    """

    data: Annotated[Path, tyro.conf.Positional]
    """Folder of a data set, in any of the known layouts (`gossamer xmc data` makes some)."""
    encoder: str = "bow"
    """bow (hashed words or the data set's features; no download), minilm, or a Hugging Face folder."""
    read: str = "auto"
    """What the encoder reads: texts, features, or auto (features where there are some and the encoder is bow)."""
    width: int = 512
    """Trained numbers of an example's vector (bow)."""
    words: int = 1 << 14
    """Words, or features, that labels can read themselves (bow)."""
    max_length: int = 128
    """Tokens of a text that are read (Hugging Face)."""
    pooling: str = "mean"
    """mean of the tokens, or cls, the first one (Hugging Face)."""
    validation: float = 0.05
    """Share of the training part that chooses the epoch; 0: the last one is kept."""
    out: Path = Path("runs/xmc")
    """Folder of everything this run writes."""
    resume: bool = False
    """Continue the run in --out where it stopped; start it if there is none."""
    overwrite: bool = False
    """Delete the run in --out first."""
    threads: int | None = None
    """CPU threads; torch's own choice when not given."""
    debug: bool = False
    """Show the traceback of an error."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.validation < 1:
            raise ValueError(f"--validation is {self.validation}; expected at least 0 and below 1")
        if self.read not in ("auto", "texts", "features"):
            raise ValueError(f"--read is {self.read!r}; expected auto, texts or features")
        if self.resume and self.overwrite:
            raise ValueError("--resume continues the run that --overwrite deletes; expected one of them")

    def recipe(self) -> Recipe:
        return Recipe(**{each.name: getattr(self, each.name) for each in fields(Recipe)})

    def identity(self, digest: str) -> dict[str, Any]:
        """What decides the numbers of a run: a checkpoint of another identity is refused.

        Args:
            digest: of the data set that was read.
        """
        aside = ("out", "resume", "overwrite", "threads", "debug", "data")
        said = {key: value for key, value in asdict(self).items() if key not in aside} | {"data": str(self.data)}
        if isinstance(self.clusters, str):
            clusters = hashlib.sha256(files.read(self.clusters, limit=1 << 34)).hexdigest()
            said["clusters"] = f"{self.clusters}, SHA-256 {clusters}"
        return said | {DIGEST: digest}


@dataclass
class _Session:
    """A run: what is trained on, what chooses the epoch, what has been seen."""

    config: Train
    sets: DataSet
    classifier: Classifier
    fit: Fit
    examples: Examples
    held_out: tuple[Inputs, Csr] | None
    world: World
    digest: str

    @cached_property
    def identity(self) -> dict[str, Any]:
        return self.config.identity(self.digest)

    @property
    def ranks(self) -> Ranks:
        """The processes that divide the labels."""
        return self.fit.head.ranks


_PROGRAM = "gossamer xmc train"


def main(arguments: Sequence[str]) -> None:
    """`gossamer xmc train` with these flags."""
    run(continued(Train, _PROGRAM, arguments, RUN.record), arguments)


def run(config: Train, arguments: Sequence[str]) -> None:
    """Everything, from flags to the report; `arguments` are the flags as typed, for the report."""
    use_threads(config.threads)
    with connected("cpu") as world:
        session = _begin(config, data.load(config.data), world)
        _open(session)
        try:
            _train(session)
        except Stopped as stopped:
            if world.first:
                command = again(Train, _PROGRAM, arguments, RUN.record)
                print(f"\nstopped at {stopped}; resume with:\n  {command}", file=sys.stderr, flush=True)
            world.wait()  # whoever starts the processes ends the others when the first one leaves
            raise
        _finish(session, arguments)


def _open(session: _Session) -> None:
    """Continue from the checkpoint in --out or make --out ready; nothing is written before all was read."""
    config, world, identity = session.config, session.world, session.identity
    if folder.inspect(config.out, identity, resume=config.resume, overwrite=config.overwrite, kind=RUN):
        _continue(session)
    world.wait()
    if world.first:
        if config.overwrite and (config.out / "classifier").exists():
            clear(config.out / "classifier")
        folder.prepare(config.out, identity, overwrite=config.overwrite, kind=RUN, settings=settings(config))
    world.wait()


def inputs_of(part: Part, encoder: str, read: str) -> Any:
    """The texts or the features of a part, as the encoder reads them."""
    features = read == "features" or (read == "auto" and encoder == "bow" and part.features is not None)
    found = part.features if features else part.texts
    if found is None:
        kind = "features" if features else "texts"
        raise ValueError(f"the data set has no {kind}, which the encoder {encoder!r} reads with --read {read}")
    return found


def _begin(config: Train, sets: DataSet, world: World) -> _Session:
    settings: dict[str, Any] = {"width": config.width, "words": config.words}
    if config.encoder != "bow":
        settings = {"max_length": config.max_length, "pooling": config.pooling}
    sizes = _sizes(config.data)
    if not sets.labels:
        raise ValueError(f"{sizes}: there are 0 labels; expected at least 1")
    classifier = Classifier(config.encoder, encoder_settings=settings, recipe=config.recipe())
    given, labels = inputs_of(sets.train, config.encoder, config.read), sets.train.labels
    keep, held = _split(labels.shape[0], config.validation, config.seed)
    # What is held out is not seen before training either: not by word frequencies, first biases and connections.
    ranks = Ranks.of() if world.size > 1 else ALONE
    try:
        fit, examples = classifier.begin(_taken(given, keep), labels.take(keep), ranks=ranks)
    except MemoryError as error:
        raise MemoryError(f"{sizes}: {error}") from error
    held_out = None
    if len(held):
        held_out = classifier.encoder.prepare(_taken(given, held)), labels.take(held)
    if sets.label_texts is not None:
        classifier.names = [" ".join(name.split()) for name in sets.label_texts]
    return _Session(config, sets, classifier, fit, examples, held_out, world, digest_of(sets))


def digest_of(sets: DataSet) -> str:
    """SHA-256 of all that a data set holds, whatever files it was read from."""
    arrays: dict[str, Any] = {}
    for name, part in (("train", sets.train), ("test", sets.test)):
        for what, matrix in (("labels", part.labels), ("features", part.features), ("exclude", part.exclude)):
            tensors = (None,) * 3 if matrix is None else (matrix.offsets, matrix.indices, matrix.values)
            arrays |= {f"{name} {what} {at}": tensor for at, tensor in enumerate(tensors)}
        arrays |= _bytes_of(f"{name} texts", part.texts)
    return digest({**arrays, **_bytes_of("names", sets.label_texts)})


def _bytes_of(name: str, texts: Texts | None) -> dict[str, Any]:
    return {f"{name} content": None if texts is None else texts.content,
            f"{name} offsets": None if texts is None else texts.offsets}  # fmt: skip


def _sizes(place: Path) -> str:
    """The files that say how many labels and features there are, for people."""
    found = recognise(place.expanduser())
    sources = [source.paths[0] for source in (found.labels, found.features) if source is not None]
    return " and ".join(dict.fromkeys(map(shown, sources)))


def _taken(given: Any, rows: Tensor) -> Any:
    return given.take(rows) if isinstance(given, Csr) else Texts.of(given[row] for row in rows.tolist())


def _split(rows: int, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Which rows are trained on, which choose the epoch; both in ascending order."""
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(seed), device="cpu")
    count = round(share * rows)
    return order[count:].sort().values, order[:count].sort().values


def _file(config: Train) -> Path:
    return config.out / "checkpoint.pt"


def _continue(session: _Session) -> None:
    config = session.config
    if not _file(config).exists():
        return
    saved = checkpoint.load(_file(config), session.identity)
    try:
        session.fit.load(saved)
    except ValueError as error:
        raise ValueError(f"checkpoint {_file(config)} does not fit this run: {error}") from error


def _train(session: _Session) -> None:
    config, fit = session.config, session.fit
    batch = min(config.batch_size, len(session.examples))
    total = len(session.examples) // batch * config.epochs

    def save() -> None:
        state = fit.state()  # the shares of all processes
        if session.world.first:
            checkpoint.save(_file(config), {"identity": session.identity, **state})

    with Progress("train", fit.step, total, shown=session.world.first) as bar, catch_signals() as stop:

        def on_step(fit: Fit) -> None:
            bar.to(fit.step)
            if session.world.any(bool(stop))[0]:
                save()
                # A process that was not signalled itself stops because another one was.
                raise Stopped(f"step {fit.step} of {total}", stop.signal or signal.SIGINT)

        def on_epoch(fit: Fit) -> None:
            point = fit.curve[-1]
            if session.held_out is not None:
                inputs, labels = session.held_out
                scores = evaluate(fit.encoder, fit.head, inputs, labels, k=K)
                point |= {f"P@{k}": scores[f"P@{k}"] for k in (1, 3, 5)}
                bar.note(f"P@1 {100 * scores['P@1']:.2f}")
            best = max(fit.curve, key=lambda each: (each.get("P@1", 0.0), each["step"]))
            if best is point:
                session.classifier.save(config.out / "classifier")
            save()

        train(fit, session.examples, on_step=on_step, on_epoch=on_epoch)


def _finish(session: _Session, arguments: Sequence[str]) -> None:
    config, sets = session.config, session.sets
    best = load(config.out / "classifier", ranks=session.ranks)
    scores = test(best, sets, config.encoder, config.read, shown=session.world.first)
    sizes = memory(session.fit)
    if not session.world.first:
        return
    page = {
        "title": f"{sets.labels:,} labels of {sets.name}",
        "scores": scores.at,
        "deciles": scores.deciles,
        "curve": session.fit.curve,
        "bytes": sizes,
        "data": {"labels": sets.labels, "train": sets.train.labels.shape[0], "test": sets.test.labels.shape[0]},
        "config": session.identity,
        "environment": measure.environment(),
        "command": shlex.join(["gossamer", "xmc", "train", *arguments]),
    }
    written = write(config.out, page)
    print(scores.table())
    print(f"\nreport: {written}\nclassifier: {config.out / 'classifier'}")


def test(classifier: Classifier, sets: DataSet, encoder: str, read: str, *, shown: bool = True) -> Scores:
    """The metrics of the test part, with the label frequencies of the training part."""
    frequency = sets.train.labels.column_counts()
    inputs = classifier.encoder.prepare(inputs_of(sets.test, encoder, read))
    with Progress("test", 0, inputs.shape[0], shown=shown) as bar:
        return evaluate(
            classifier.encoder, classifier.head, inputs, sets.test.labels, k=min(K, sets.labels),
            exclude=sets.test.exclude, propensity=inverse_propensity(sets.train.labels), frequency=frequency,
            on_batch=bar.to,
        )  # fmt: skip


def memory(fit: Fit) -> dict[str, int]:
    """Bytes of the encoder, of layer and head with their optimizers, and of a dense float32 head on the embedding."""
    encoder = sum(p.numel() * p.itemsize for p in fit.encoder.parameters())
    inner, layer = fit.head, {}
    if isinstance(inner, WideHead):
        layer = {"intermediate layer": sum(t.numel() * t.itemsize for t in inner.buffers(recurse=False))}
        inner = inner.head
    mine = torch.tensor(sum(t.numel() * t.itemsize for t in inner.buffers()), device="cpu")
    fit.head.ranks.add(mine)  # of all processes
    head = int(mine)
    width = fit.encoder.width or fit.head.width
    return {"encoder": encoder, **layer, "head": head, "dense head": 16 * fit.head.labels * (width + 1)}
