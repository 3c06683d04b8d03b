"""Where the weights of a model lie, and what they are called: looked at before anything is built for them."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gossamer import files
from gossamer.extras import needed
from gossamer.serving.checkpoints import gguf_header, models
from gossamer.serving.checkpoints.gguf_header import Header
from gossamer.spelling import suggestion

_LARGEST_JSON = 1 << 26
_LONGEST = 400  # letters of what others say
_ONE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")


@dataclass(frozen=True)
class Checkpoint:
    """A folder that transformers reads: of Hugging Face's files, or with a GGUF file.

    Attributes:
        folder: where everything lies.
        gguf: the header of the GGUF file; None for Hugging Face's files.
        name: the GGUF file's name; None for Hugging Face's files.
        shapes: shape of each tensor of weights.
    """

    folder: Path
    shapes: dict[str, tuple[int, ...]]
    gguf: Header | None = None
    name: str | None = None

    @property
    def source(self) -> str:
        """What was read, for people."""
        return str(self.folder / self.name if self.name else self.folder)

    @property
    def settings(self) -> str:
        """The file that says what the model is, for people."""
        return str(self.folder / (self.name or "config.json"))

    @property
    def elements(self) -> int:
        """Numbers in all tensors."""
        return sum(math.prod(shape) for shape in self.shapes.values())


@contextmanager
def reading(source: str | Path) -> Iterator[None]:
    """Turn what the packages that read a file raise, kinds without a common base, into a ValueError that names it."""
    try:
        yield
    except MemoryError:
        raise
    except BaseException as error:
        if (
            not isinstance(error, Exception) and type(error).__name__ != "PanicException"
        ):  # of Rust, where tokenizers stop
            raise
        raise ValueError(f"{source} cannot be read: {words_of(error)}") from error


def words_of(error: BaseException) -> str:
    """The first sentence of an error: no heading, which ends with a colon, and what it is called if it says nothing."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = next((line for line in lines if not line.endswith(":")), lines[0] if lines else type(error).__name__)
    return re.sub(r"^[A-Za-z]+(Error|Exception): ", "", said)[:_LONGEST]


def find(model: str | os.PathLike[str]) -> Checkpoint:
    """What a name or a path of a model leads to. A folder with safetensors and a GGUF file means the safetensors.

    Raises:
        FileNotFoundError: there is nothing, or a part is missing; the message names it.
        ValueError: it is no model, cannot be told from another one, or is damaged.
        OSError: it cannot be read. ImportError: a package that reads it is not installed.
    """
    path = Path(model).expanduser()
    if str(model) in models.names() and not path.exists():
        path = models.found(str(model))
    if not path.exists():
        raise FileNotFoundError(
            f"there is no model {str(model)!r}; expected a folder with config.json and safetensors, a folder with a "
            f".gguf file, a .gguf file, or a name: {', '.join(models.names())}" + suggestion(str(model), models.names())
        )
    if not path.is_dir():
        if path.suffix.lower() != ".gguf":
            raise ValueError(f"{path} is {files.kind(path)}, expected a folder, or a file whose name ends with .gguf")
        return _gguf(path)
    ggufs = sorted(each for each in path.iterdir() if each.suffix.lower() == ".gguf")
    if not ggufs or (path / _ONE).exists() or (path / _INDEX).exists():
        return _safetensors(path)
    if len(ggufs) > 1:
        names = ", ".join(each.name for each in ggufs)
        raise ValueError(f"{path} holds several GGUF files: {names}; expected one, or the path of one")
    return _gguf(ggufs[0])


def _gguf(path: Path) -> Checkpoint:
    with reading(path):
        header = gguf_header.read(path)
    return Checkpoint(path.absolute().parent, {n: t.shape for n, t in header.tensors.items()}, header, path.name)


def _safetensors(folder: Path) -> Checkpoint:
    if (folder / "adapter_config.json").exists():
        raise ValueError(f"{folder} holds an adapter (adapter_config.json); merge it into its model and save that")
    if not (folder / "config.json").exists():
        raise FileNotFoundError(f"{folder} has no config.json and no .gguf file; expected what save_pretrained writes")
    shapes: dict[str, tuple[int, ...]] = {}
    for path in _parts(folder):
        shapes.update(_shapes(path))
    return Checkpoint(folder.absolute(), shapes)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; every fault of it is a ValueError that names the file."""
    with reading(path):
        content = files.parse_json(files.read(path, limit=_LARGEST_JSON))
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, expected an object")
    return content


def _parts(folder: Path) -> Sequence[Path]:
    """The files of weights that transformers will read."""
    if (folder / _ONE).exists():
        return [folder / _ONE]
    if not (folder / _INDEX).exists():
        pickles = [name for name in _PICKLES if (folder / name).exists()]
        said = f" ({pickles[0]} is a pickle, which could run anything: save it as safetensors)" if pickles else ""
        raise FileNotFoundError(f"{folder} has no weights: expected {_ONE} or {_INDEX}{said}")
    table = read_json(folder / _INDEX).get("weight_map")
    if not isinstance(table, dict) or not table or not all(isinstance(name, str) for name in table.values()):
        raise ValueError(f"{folder / _INDEX} has no weight_map of names to files")
    names = sorted(set(table.values()))
    if outside := [name for name in names if Path(name).name != name]:
        raise ValueError(f"{folder / _INDEX} names {outside[0]!r}, expected files of its own folder")
    if missing := [name for name in names if not (folder / name).exists()]:
        raise FileNotFoundError(
            f"{folder} lacks {', '.join(missing[:3])} ({len(missing)} of {len(names)} files of weights)"
        )
    return [folder / name for name in names]


def _shapes(path: Path) -> dict[str, tuple[int, ...]]:
    safetensors = needed("safetensors", "weights in safetensors need safetensors", "serving")
    with reading(path):
        files.open_file(path).close()  # a pipe would be waited for
        with safetensors.safe_open(path, framework="pt") as content:
            return {name: tuple(content.get_slice(name).get_shape()) for name in content.keys()}  # noqa: SIM118
