"""Classifier: texts or features in, the best of many labels out; an encoder and a head of fixed fan-in."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import cached_property
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gossamer import files
from gossamer.owned import Record, remove
from gossamer.ranks import ALONE, Ranks
from gossamer.xmc import checksums, encoders
from gossamer.xmc.data.csr import Csr
from gossamer.xmc.encoders import Encoder
from gossamer.xmc.fit import Examples, Fit, train
from gossamer.xmc.grouping import as_clusters, clusters_of, order_of
from gossamer.xmc.heads.base_head import Head
from gossamer.xmc.heads.features import features_of
from gossamer.xmc.heads.opening import open_head
from gossamer.xmc.predict import predictions
from gossamer.xmc.recipe import Recipe
from gossamer.xmc.wiring import wire

if TYPE_CHECKING:
    from scipy.sparse import spmatrix

RECORD = "classifier.json"
OURS = Record(RECORD, "gossamer.xmc.classifier", 2, "classifier", (("files", list),), oldest=1)
_CHECKED = 2  # the first version whose record has checksums of the files
NAMES = "labels.txt"
_NAMES_LIMIT = 1 << 34

Data = "Iterable[str] | Csr | spmatrix"


class Classifier:
    """A classifier over many labels, trained end to end without logits, dense weights or dense gradients.

    Args:
        encoder: "bow" (hashed words, no download), "minilm", a Hugging Face folder, or an `Encoder`.
        encoder_settings: of an encoder that is named, such as {"width": 512} or {"max_length": 64}.
        recipe: everything about training; or its fields by name, such as fan_in=64, epochs=10, seed=0.

    Attributes:
        encoder, head: after `fit` or `load`; `head` is a `gossamer.xmc.FusedHead`, or consists of some.
        names: of the labels, one a label; None where they are numbers only. Saved with the rest.
        curve: a point an epoch: step, epoch, loss.

    >>> texts, sets = ["a red apple", "a green pear", "red wine"] * 8, [[0, 2], [1], [0]] * 8
    >>> clf = Classifier(encoder_settings={"width": 16, "features": 256}, fan_in=8, epochs=20, batch_size=8)
    >>> scores, ids = clf.fit(texts, sets, labels=3).predict_topk(["green pear"], k=1)
    >>> ids.tolist()
    [[1]]
    """

    def __init__(
        self,
        encoder: str | Path | Encoder = "bow",
        *,
        encoder_settings: dict[str, Any] | None = None,
        recipe: Recipe | None = None,
        **settings: Any,
    ) -> None:
        if recipe is not None and settings:
            raise TypeError(f"recipe was given, and {', '.join(settings)} besides; expected one of them")
        unknown = set(settings) - set(Recipe.__dataclass_fields__)
        if unknown:
            raise TypeError(f"{sorted(unknown)[0]!r} is no setting; expected {', '.join(Recipe.__dataclass_fields__)}")
        self.recipe = recipe or Recipe(**settings)
        self.given, self.encoder_settings = encoder, dict(encoder_settings or {})
        self.names: Sequence[str] | None = None
        self.fitted: Fit | None = None
        self._encoder: Encoder | None = None
        self._head: Head | None = None

    @property
    def encoder(self) -> Encoder:
        """The encoder; RuntimeError before `fit`."""
        if self._encoder is None:
            raise RuntimeError("the classifier was not fitted; call fit(x, y) or gossamer.xmc.load(folder) first")
        return self._encoder

    @property
    def head(self) -> Head:
        """The head; RuntimeError before `fit`."""
        if self._head is None:
            raise RuntimeError("the classifier was not fitted; call fit(x, y) or gossamer.xmc.load(folder) first")
        return self._head

    @cached_property
    def number_of(self) -> dict[str, int]:
        """Name -> number of a label; of two that share a name, the first."""
        return {name: at for at, name in reversed(list(enumerate(self.names or ())))}

    @property
    def curve(self) -> list[dict[str, float]]:
        return [] if self.fitted is None else self.fitted.curve

    @torch.inference_mode(False)
    def begin(self, x: Any, y: Csr, clusters: Tensor | None = None, *, ranks: Ranks = ALONE) -> tuple[Fit, Examples]:
        """The encoder and the head before their first step, and the examples as they read them.

        Args:
            ranks: the processes that divide the labels; each calls this with the same examples.
        """
        x = as_data("x", x)
        encoder = self.given
        if not isinstance(encoder, Encoder):
            given = x.shape[1] if isinstance(x, Csr) else None
            with torch.random.fork_rng([]):  # it is made on the CPU
                torch.manual_seed(self.recipe.seed)
                encoder = encoders.make(encoder, given=given, **self.encoder_settings)
        encoder.learn(x)
        inputs = encoder.prepare(x)
        if inputs.shape[0] != y.shape[0]:
            raise ValueError(f"x has {inputs.shape[0]} examples and y {y.shape[0]}; expected as many")
        if clusters is None:
            clusters = clusters_of(self.recipe.clusters, x, inputs, y, seed=self.recipe.seed)
        count = 0 if clusters is None else int(clusters.max()) + 1
        order = order_of(self.recipe, x, inputs, y)
        fit = Fit.of(encoder, y, self.recipe, clusters=count, order=order, ranks=ranks)
        features = features_of(encoder, fit.head, inputs)
        if features is not None:
            wire(fit.head, features, y, self.recipe.chosen)
        self.fitted, self._encoder, self._head = fit, encoder, fit.head
        return fit, Examples(inputs, y, clusters)

    def fit(
        self,
        x: Any,
        y: Csr | spmatrix | Sequence[Sequence[int]],
        *,
        labels: int | None = None,
        clusters: Tensor | Sequence[int] | None = None,
        on_step: Callable[[Fit], None] = lambda _: None,
        on_epoch: Callable[[Fit], None] = lambda _: None,
    ) -> Classifier:
        """Train on examples `x` and their label sets `y`; a second call starts anew.

        Args:
            x: texts; or features, a `Csr` with values or any scipy.sparse matrix [examples, width].
            y: [examples, labels]: a `Csr`, a scipy.sparse matrix, or a list of numbers an example.
            labels: how many labels there are, where `y` is a list; None: the largest number and one.
            clusters: the cluster of each label, for the auxiliary objective; None: what `Recipe.clusters` says.
            on_step, on_epoch: called with the `Fit`, after each step and epoch.

        Returns:
            itself.

        Raises:
            TypeError, ValueError: naming the argument. MemoryError: the head does not fit; says how many labels do.
            FloatingPointError: training went out of range.
        """
        y = as_labels("y", y, labels)
        fit, examples = self.begin(x, y, None if clusters is None else as_clusters(clusters, y.shape[1]))
        train(fit, examples, on_step=on_step, on_epoch=on_epoch)
        return self

    def predict_topk(
        self, x: Any, k: int = 5, *, exclude: Csr | Sequence[Sequence[int]] | None = None, batch_size: int = 256
    ) -> tuple[Tensor, Tensor]:
        """The best labels of each example.

        Args:
            x: as in `fit`.
            exclude: labels that are not to be predicted: a list of numbers an example, or a `Csr` [examples, labels].

        Returns:
            scores float32[examples, k] and ids int64[examples, k], best first; ties go to the lower label. With fewer
            than k labels left, the rest are of score -inf and id -1.
        """
        inputs = self.encoder.prepare(as_data("x", x))
        if exclude is not None and not isinstance(exclude, Csr):
            exclude = Csr.from_lists(exclude, self.head.labels)
        if exclude is not None and exclude.shape != (inputs.shape[0], self.head.labels):
            raise ValueError(f"exclude must be of shape {(inputs.shape[0], self.head.labels)}, got {exclude.shape}")
        found = list(predictions(self.encoder, self.head, inputs, k, exclude=exclude, batch_size=batch_size))
        if not found:
            none = torch.zeros(0, k, dtype=torch.int64, device="cpu")
            return none.float(), none
        return torch.cat([scores for scores, _ in found]), torch.cat([ids for _, ids in found])

    def subset(self, labels: Sequence[int] | Tensor) -> Classifier:
        """A smaller classifier that knows these labels only, numbered 0, 1, ... in this order; the encoder is shared.

        Raises:
            ValueError: a label that does not exist, or twice.
        """
        small = Classifier(self.given, encoder_settings=self.encoder_settings, recipe=self.recipe)
        wanted = torch.as_tensor(labels, dtype=torch.int64, device="cpu")
        small._encoder, small._head = self.encoder, self.head.subset(wanted)
        small.names = None if self.names is None else [self.names[at] for at in wanted.tolist()]
        return small

    def save(self, folder: str | Path) -> Path:
        """Write everything that `load` needs: JSON, safetensors and flat arrays, no pickle.

        Where labels are divided among processes, all of them call it. A folder that holds a classifier already is
        replaced at the end; an interrupted save leaves the one of before.

        Raises:
            NotADirectoryError, FileExistsError: it is no folder, or holds something else.
        """
        folder, ranks, encoder = Path(folder), self.head.ranks, self.encoder
        content = ranks.same(f"content-{secrets.token_hex(4)}")  # a new place: the record is what changes at once
        place, before = folder / content, list[str]()

        def begin() -> None:
            before.extend(saved_files(folder))
            if self.names is not None:
                _check_names(self.names, self.head.labels)
            (place / "encoder").mkdir(parents=True)
            encoder.save(place / "encoder")

        def finish() -> None:
            if self.names is not None:
                with files.replacing(place / NAMES) as file:
                    file.writelines(f"{name}\n".encode() for name in self.names)
            written = [str(path.relative_to(folder)) for path in sorted(place.rglob("*")) if path.is_file()]
            OURS.write(
                folder, labels=self.head.labels, recipe=asdict(self.recipe), content=content, files=written,
                encoder={"kind": encoder.kind, "settings": encoder.settings()}, digests=checksums.of(folder, written),
            )  # fmt: skip
            remove(folder, before)

        ranks.together(begin, first=True)
        self.head.save(place / "head")
        ranks.together(finish, first=True)
        return folder


@torch.inference_mode(False)
def load(
    folder: str | Path, *, mmap: bool = True, verify: bool | None = None, ranks: Ranks = ALONE
) -> Classifier:  # fmt: skip
    """The classifier that `Classifier.save` wrote.

    Args:
        mmap: read the head from the file when it is needed, instead of all of it now.
        verify: compare every byte with its checksum, which reads all of it now. None: those of the encoder and of the
            small files always, those of the head's arrays where they are at most `gossamer.xmc.checksums.SMALL`
            bytes (2 MiB) together, since larger ones are only mapped. False: nothing is compared. A save of before
            there were checksums has those of the head's arrays only.
        ranks: the processes that divide the labels.

    Raises:
        FileNotFoundError: there is none, or a file of it is missing.
        ValueError: a file is damaged, cannot be read, or is of another program; the message names it.
        TypeError: `verify` is something else.
    """
    if verify is not None and not isinstance(verify, bool):
        raise TypeError(f"verify must be True, False or None, got {verify!r}")
    folder = Path(folder)
    if not folder.is_dir() or not (folder / RECORD).is_file():
        raise FileNotFoundError(f"{folder} holds no {RECORD}, so it is no classifier of this program")
    record = OURS.read(folder)
    if record.get("empty") is True:
        raise FileNotFoundError(f"{folder} holds no classifier yet")
    try:
        recipe = Recipe(**record["recipe"])
        kind, settings = record["encoder"]["kind"], record["encoder"]["settings"]
        place = folder / record["content"]
        digests = dict(record["digests"]) if record["version"] >= _CHECKED else {}
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{folder / RECORD} cannot be used: {error}") from error
    if verify is not False:
        checksums.check(folder, folder / RECORD, digests)
    out = Classifier(place / "encoder" if kind != "bow" else kind, encoder_settings=settings, recipe=recipe)
    out._encoder = encoders.restore(place / "encoder", kind, settings).eval()
    every = checksums.is_small(place / "head") if verify is None else verify
    out._head = open_head(place / "head", mmap=mmap, verify=every, ranks=ranks)
    widths = out._encoder.width, out._encoder.width + out._encoder.beside
    if out._head.width not in widths or out._head.labels != record["labels"]:
        raise ValueError(f"{folder}: encoder, head and {RECORD} do not belong together")
    if (place / NAMES).is_file():
        out.names = files.read(place / NAMES, limit=_NAMES_LIMIT).decode().split("\n")[:-1]
        _check_names(out.names, out._head.labels)
    return out


def _check_names(names: Sequence[str], labels: int) -> None:
    if len(names) != labels:
        raise ValueError(f"names has {len(names)} entries; expected one for each of the {labels} labels")
    wrong = next((at for at, name in enumerate(names) if "\n" in name), None)
    if wrong is not None:
        raise ValueError(f"names[{wrong}] is {names[wrong]!r:.80}; expected names of one line")


def saved_files(folder: Path) -> list[str]:
    """What an earlier save wrote into `folder`, the record apart.

    Raises:
        NotADirectoryError, FileExistsError: it is no folder, or holds files of others only.
        ValueError: the record is damaged.
    """
    record = OURS.find(folder)
    return [name for name in (record or {"files": []})["files"] if str(name).startswith("content-")]


def clear(folder: Path) -> None:
    """Delete what an earlier save wrote; the folder stays ours, for the next one.

    Raises:
        NotADirectoryError, FileExistsError, ValueError: it is no folder of ours.
    """
    names = saved_files(folder)
    OURS.write(folder, empty=True, files=names)  # whoever is killed now goes on here
    remove(folder, names)
    OURS.write(folder, empty=True, files=[])


def as_data(name: str, x: Any) -> Any:
    """Texts as they are, features as a valid `Csr`."""
    if isinstance(x, str | bytes):
        raise TypeError(f"{name} is one {type(x).__name__}; expected a sequence of texts")
    if isinstance(x, Csr):
        return x.validate()
    if hasattr(x, "tocsr"):
        return Csr.from_scipy(x)
    if not isinstance(x, Sequence):
        raise TypeError(f"{name} must be texts, a Csr or a scipy.sparse matrix, got {type(x).__name__}")
    return x


def as_labels(name: str, y: Any, labels: int | None = None) -> Csr:
    """Label sets as a valid `Csr` without values."""
    if hasattr(y, "tocsr"):
        y = Csr.from_scipy(y, values=False)
    elif isinstance(y, Csr):
        y = Csr(y.offsets, y.indices, None, y.shape).validate()
    elif isinstance(y, Sequence) and not isinstance(y, str):
        for at, row in enumerate(y):
            wrong = [each for each in row if isinstance(each, bool) or not isinstance(each, Integral)]
            if wrong:
                raise TypeError(f"{name}[{at}] has the label {wrong[0]!r}; expected numbers, of labels from 0 on")
        most = max((max(row) for row in y if len(row)), default=-1)
        y = Csr.from_lists(y, labels if labels is not None else most + 1)
    else:
        raise TypeError(f"{name} must be a Csr, a scipy.sparse matrix or lists of numbers, got {type(y).__name__}")
    if labels is not None and y.shape[1] != labels:
        raise ValueError(f"{name} has {y.shape[1]} labels; expected the {labels} of labels=")
    if not y.shape[1]:
        raise ValueError(f"{name} has no label; expected at least one")
    return y
