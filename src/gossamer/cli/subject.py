"""The model and the data that a command looks at, by the names that `train`, `generate` and `route` take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gossamer import data, files, models
from gossamer.cli.language import check_length
from gossamer.serving.calibrating.passkeys import beginning
from gossamer.serving.checkpoints.models import names as decoders
from gossamer.spelling import suggestion

_LARGEST = 1 << 26
_PICTURES = ("digits", "npz:", "imagefolder:")


@dataclass(frozen=True, eq=False)
class Subject:
    """A model and some of its data.

    Attributes:
        model: in evaluation mode. batches: what it reads. notes: what to keep in mind about them.
        source: the data as other commands take it.
    """

    model: nn.Module
    batches: list[Any]
    source: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Sizes:
    """How much of the data is read: None means what is usual for the kind of model.

    Attributes:
        batch: examples of a batch. length: tokens of a text, at most. samples: examples in all.
    """

    batch: int | None = None
    length: int | None = None
    samples: int | None = None

    def __post_init__(self) -> None:
        for name in ("batch", "length", "samples"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"--{name} must be at least 1, got {value}")


def subject(model: str, source: str, sizes: Sizes, *, dtype: str | None = None) -> Subject:
    """Load both.

    Args:
        model: a name of `gs.models`, `module:factory` or `path/to/file.py:factory`, with pictures or vectors; or a name
            of `gossamer model`, "minilm", a folder of Hugging Face's, or with a .gguf, or a .gguf file, with text.
        source: digits, npz:PATH or imagefolder:PATH, or such a path alone; or a file of text in UTF-8, or token ids
            in a .npy file.

    Raises:
        ValueError, FileNotFoundError, ImportError: naming the argument, its value and what was expected.
    """
    place = Path(model).expanduser()
    if model in models.names() or (":" in model and not place.exists()):
        return _network(model, source, sizes, dtype)
    known = (*models.names(), *decoders(), "minilm")
    if not place.exists() and model not in known:
        raise FileNotFoundError(
            f"there is no model {model!r}; expected {', '.join(known)}, module:factory, path/to/file.py:factory, a "
            "folder of Hugging Face's or a .gguf file" + suggestion(model, known)
        )
    if source.startswith(_PICTURES) or Path(source).expanduser().is_dir():
        raise ValueError(
            f"DATA is {source!r}, but {model} reads text; expected a file of text, or of token ids in .npy"
        )
    if model == "minilm" or _is_encoder(place):
        return _encoder(model, source, sizes, dtype)
    return _decoder(model, source, sizes, dtype)


def _network(model: str, source: str, sizes: Sizes, dtype: str | None) -> Subject:
    for flag, value in (("--length", sizes.length), ("--dtype", dtype)):
        if value is not None:
            raise ValueError(f"{flag} is {value}, but it is for models of text; {model} reads pictures or vectors")
    named, path = source, Path(source).expanduser()
    if not source.startswith(_PICTURES):
        if not path.exists():
            raise FileNotFoundError(
                f"DATA is {source!r}; expected digits, npz:PATH or imagefolder:PATH, or such a path alone"
            )
        named = f"imagefolder:{source}" if path.is_dir() else f"npz:{source}"
    splits = data.load(named, seed=0)
    torch.manual_seed(0)
    network = models.build(model, input_shape=splits.input_shape, classes=splits.classes).eval()
    batch = sizes.batch or 64
    x = splits.test_x[: sizes.samples or 4 * batch]
    note = (
        f"{model} has the weights that it begins with. Zeros, channels and contributions of trained weights differ: "
        "give a factory that loads yours."
    )
    return Subject(network, list(x.split(batch)), named, (note,))


def _is_encoder(place: Path) -> bool:
    """Whether a folder holds a model of text that is no decoder."""
    if not (place / "config.json").is_file():
        return False
    from gossamer.serving.checkpoints.checkpoint import find
    from gossamer.serving.checkpoints.decoder import configuration

    try:
        configuration(find(place))
    except ValueError as error:
        if "no causal" in str(error):  # an encoder, or one without its head
            return True
        raise
    return False


def _encoder(model: str, source: str, sizes: Sizes, dtype: str | None) -> Subject:
    """Lines of a file, padded as they come."""
    from gossamer.xmc.encoders.transformer import Transformer

    if dtype is not None:
        raise ValueError(f"--dtype is {dtype}, but encoders are read in float32")
    length, batch = sizes.length or 128, sizes.batch or 32
    lines = _lines(source, sizes.samples or 4 * batch)
    read = Transformer(model, max_length=max(length, 2))
    longest = getattr(read.model.config, "max_position_embeddings", length)
    if length > longest:
        raise ValueError(f"--length must be up to {longest} for {model}, got {length}")
    batches = [
        dict(
            read.tokenizer(
                lines[at : at + batch], padding=True, truncation=True, max_length=length, return_tensors="pt"
            )
        )
        for at in range(0, len(lines), batch)
    ]
    return Subject(read.model.eval(), batches, source, ("Each line of the file is a text; batches are as they come.",))


def _decoder(model: str, source: str, sizes: Sizes, dtype: str | None) -> Subject:
    """A text in pieces of one length."""
    from gossamer.serving.checkpoints.loading import load

    ids, said = (_ids(source), None) if source.endswith(".npy") else (None, _text(source))
    length, batch = sizes.length or 512, sizes.batch or 1
    loaded = load(model, dtype=dtype)
    start: list[int] = []
    if ids is None:
        if loaded.tokenizer is None:
            raise ValueError(f"{model} has no tokenizer, which texts need; expected token ids in a .npy file")
        start = beginning(loaded.tokenizer)
    check_length(loaded, len(start), length)
    samples = sizes.samples or 2 * batch
    if ids is None:
        assert said is not None
        # A token is rarely longer than 64 letters: the rest of a long text need not be read.
        ids = loaded.tokenizer.encode(said[: 64 * samples * length], add_special_tokens=False)
    elif min(ids) < 0 or max(ids) >= loaded.model.config.vocab_size:
        raise ValueError(
            f"DATA {source} has token ids from {min(ids)} to {max(ids)}; expected 0 to "
            f"{loaded.model.config.vocab_size - 1}"
        )
    pieces = [start + ids[at : at + length] for at in range(0, min(len(ids), samples * length), length)]
    if len(pieces) > 1 and len(pieces[-1]) < len(pieces[0]):
        pieces.pop()  # a batch is of one length
    return Subject(
        loaded.model,
        [torch.tensor(pieces[at : at + batch], device="cpu") for at in range(0, len(pieces), batch)],
        source,
    )


def _text(source: str) -> str:
    path = Path(source).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"DATA is {source!r}; expected a file of text in UTF-8, or of token ids in .npy")
    try:
        said = files.read(path, limit=_LARGEST).decode()
    except ValueError as error:
        raise ValueError(f"DATA {source} is no text in UTF-8: {error}") from None
    if not said.strip():
        raise ValueError(f"DATA {source} holds no text")
    return said


def _lines(source: str, most: int) -> list[str]:
    lines: Sequence[str] = [line.strip() for line in _text(source).splitlines() if line.strip()]
    return list(lines[:most])


def _ids(source: str) -> list[int]:
    import numpy as np

    path = Path(source).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"DATA is {source!r}; there is no such file")
    try:
        array = np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f"DATA {source} is no .npy file of numbers: {error}") from None
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "iu" or array.ndim != 1 or not len(array):
        raise ValueError(f"DATA {source} holds {array.dtype}{list(array.shape)}; expected token ids, integers [tokens]")
    return [int(each) for each in array]
