"""Compact models on disk: weights as safetensors, shapes as JSON, no pickle.

    compact.json                 format, version, kept positions, module attributes, the weight file, hashes of both
    weights-<hash>.safetensors   every parameter and persistent buffer, once

The JSON names its weight file and is replaced last, in one rename, so a reader finds the old model or the new one.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gossamer import files
from gossamer.wrappers import plain_name, plain_names, unwrap

from .attributes import Changes
from .borrow import refuse_shards
from .capture import first_names, state_tensors
from .optimizer import sliced
from .rewrite import history, set_data

FORMAT, VERSION = "gossamer.compact", 1
_SHAPES = "compact.json"
_OURS = re.compile(r"weights-[0-9a-f]{16}\.safetensors")


class StoreError(RuntimeError):
    """A saved model that cannot be read back."""


def _safetensors() -> Any:
    try:
        import safetensors.torch
    except ImportError as error:
        raise ImportError("saving compact models needs safetensors: pip install gossamer[run]") from error
    return safetensors.torch


def _persistent(model: nn.Module) -> dict[str, Tensor]:
    """Entries of the state dict by first name, without wrappers; shared tensors once."""
    first, plain = first_names(model), plain_names(model)
    out: dict[str, Tensor] = {}
    for name, value in model.state_dict(keep_vars=True).items():
        if not isinstance(value, Tensor) or name not in first:
            raise TypeError(f"state_dict entry {name!r} is not a parameter or buffer: it cannot be saved as a tensor")
        out[plain_name(plain, first[name])] = value.detach()
    return out


def save(model: nn.Module, directory: str | Path) -> Path:
    """Write the network inside `model`, and all that `shrink_` and `compact` ever removed from it, into `directory`.

    Existing files of an older save are replaced at the very end; an interrupted save leaves them readable.
    """
    writer = _safetensors()
    model, directory = unwrap(model), Path(directory)
    refuse_shards(model)
    plain = plain_names(model)
    directory.mkdir(parents=True, exist_ok=True)
    tensors = {name: value.cpu().contiguous() for name, value in _persistent(model).items()}
    data = writer.save(tensors)
    digest = hashlib.sha256(data).hexdigest()
    past = history(model)
    weights = f"weights-{digest[:16]}.safetensors"
    shapes: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "model": type(model).__name__,
        "weights": {"file": weights, "sha256": digest},
        "shapes": {plain_name(plain, name): list(value.shape) for name, value in state_tensors(model).items()},
        "kept": {
            plain_name(plain, name): {
                str(axis): {"of": size, "positions": index.tolist()} for axis, (size, index) in axes.items()
            }
            for name, axes in past.positions.items()
        },
        "attributes": {plain.get(path, path): values for path, values in past.attributes.items()},
    }
    shapes["sha256"] = digest_of(shapes)
    _replace(directory / weights, data)
    _replace(directory / _SHAPES, json.dumps(shapes, indent=1).encode())
    for old in directory.glob("weights-*.safetensors"):
        if old.name != weights and _OURS.fullmatch(old.name):
            old.unlink(missing_ok=True)
    return directory


def digest_of(record: dict[str, Any]) -> str:
    """Hash of everything in the JSON but the hash itself: a changed digit would build another network."""
    rest = {key: value for key, value in record.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _replace(path: Path, data: bytes) -> None:
    with files.replacing(path) as file:
        file.write(data)


@torch.inference_mode(False)
def load_compact(factory: Callable[[], nn.Module], directory: str | Path) -> nn.Module:
    """Rebuild a saved compact model: build the original architecture, shrink it, load the weights.

    Args:
        factory: function of no arguments returning the original, full-size model (its values do not matter). Wrappers
            around it are taken off: wrap what comes back.
        directory: where `Compact.save` wrote.

    Raises:
        StoreError: a file is missing, truncated or altered, the format is newer, or `factory` builds another model.
        ImportError: safetensors is not installed.

    >>> import tempfile, torch
    >>> def build():
    ...     return torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2)).eval()
    >>> net = build()
    >>> _ = net[2].weight.data[:, 3:].zero_()
    >>> from gossamer.compaction import compact
    >>> small = compact(net, torch.randn(5, 4), round_to=1, check_latency=False)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     again = load_compact(build, small.save(folder))
    >>> x = torch.randn(2, 4)
    >>> torch.equal(again(x), small.model(x))
    True
    """
    reader = _safetensors()
    directory = Path(directory)
    shapes = _read_shapes(directory)
    tensors = _read_weights(directory, shapes, reader)
    if isinstance(factory, nn.Module) or not callable(factory):
        raise TypeError(f"factory must be a function that builds the model, got {type(factory).__name__}")
    model = factory()
    if not isinstance(model, nn.Module):
        raise TypeError(f"factory must return a torch.nn.Module, got {type(model).__name__}")
    model = unwrap(model)
    refuse_shards(model)
    positions, attributes = _parsed(shapes, directory)
    own, modules = _by_plain_name(model)
    state = {plain: state_tensors(model)[name] for plain, name in own.items()}
    _check_fits(model, state, modules, positions, attributes, tensors, shapes, directory)
    for name, axes in positions.items():
        set_data(state[name], sliced(state[name], {axis: index for axis, (_, index) in axes.items()}))
    for path, values in attributes.items():
        for name, value in values.items():
            setattr(modules[path][1], name, value)
    for name, value in tensors.items():
        set_data(state[name], value.to(state[name].device))
    past = history(model)
    past.positions = {own[name]: axes for name, axes in positions.items()}
    past.attributes = {modules[path][0]: values for path, values in attributes.items()}
    return model


def _by_plain_name(model: nn.Module) -> tuple[dict[str, str], dict[str, tuple[str, nn.Module]]]:
    """Plain name -> own name of every parameter and buffer; plain path -> (own path, module) inside wrappers."""
    plain = plain_names(model)
    modules = {plain[path]: (path, module) for path, module in model.named_modules(remove_duplicate=False)}
    return {plain_name(plain, name): name for name in state_tensors(model)}, modules


def _read_shapes(directory: Path) -> dict[str, Any]:
    path = directory / _SHAPES
    try:
        shapes = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise StoreError(f"{path} does not exist: {directory} holds no saved compact model") from error
    except (OSError, ValueError) as error:
        raise StoreError(f"{path} is not readable JSON: {error}") from error
    if not isinstance(shapes, dict) or shapes.get("format") != FORMAT:
        raise StoreError(f"{path} is not a compact model (no format {FORMAT!r})")
    version = shapes.get("version")
    if not isinstance(version, int) or version > VERSION:
        raise StoreError(f"{path} has version {version!r}, this gossamer reads up to {VERSION}: update gossamer")
    if shapes.get("sha256") != digest_of(shapes):
        raise StoreError(f"{path} is altered: its content does not match its hash")
    return shapes


def _read_weights(directory: Path, shapes: dict[str, Any], reader: Any) -> dict[str, Tensor]:
    try:
        name, digest = str(shapes["weights"]["file"]), shapes["weights"]["sha256"]
    except (KeyError, TypeError) as error:
        raise StoreError(f"{directory / _SHAPES} does not name its weights") from error
    path = directory / name
    if path.parent != directory:
        raise StoreError(f"{directory / _SHAPES} names weights outside its folder: {name!r}")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror}") from error
    if hashlib.sha256(data).hexdigest() != digest:
        raise StoreError(f"{path} is truncated or altered: {len(data)} bytes do not match the recorded hash")
    try:
        return reader.load(data)
    except Exception as error:  # safetensors raises its own SafetensorError, not exported everywhere
        raise StoreError(f"{path} is not a safetensors file: {error}") from error


Positions = dict[str, dict[int, tuple[int, Any]]]


def _parsed(shapes: dict[str, Any], directory: Path) -> tuple[Positions, Changes]:
    try:
        positions: Positions = {}
        for name, axes in shapes["kept"].items():
            for axis, entry in axes.items():
                index = torch.tensor(entry["positions"], dtype=torch.int64)
                size = int(entry["of"])
                if index.dim() != 1 or not len(index) or int(index.min()) < 0 or int(index.max()) >= size:
                    raise ValueError(f"{name} axis {axis}: positions out of range")
                if bool((index.diff() <= 0).any()):
                    raise ValueError(f"{name} axis {axis}: positions do not increase")
                positions.setdefault(name, {})[int(axis)] = size, index
        attributes = {str(path): dict(values) for path, values in shapes["attributes"].items()}
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RuntimeError) as error:
        raise StoreError(f"{directory / _SHAPES} is damaged: {type(error).__name__}: {error}") from error
    return positions, attributes


def _check_fits(
    model: nn.Module,
    state: dict[str, Tensor],
    modules: dict[str, tuple[str, nn.Module]],
    positions: Positions,
    attributes: Changes,
    tensors: dict[str, Tensor],
    shapes: dict[str, Any],
    directory: Path,
) -> None:
    """Compare everything before the first change, so that an error leaves nothing half done."""
    expected = set(_persistent(model))
    other = f"{directory} was saved from another model than factory() builds ({shapes.get('model')}): "
    if set(tensors) != expected:
        missing, extra = sorted(expected - set(tensors))[:3], sorted(set(tensors) - expected)[:3]
        raise StoreError(f"{other}factory's {missing} are not in the file, the file's {extra} not in the model")
    for name, axes in positions.items():
        for axis, (size, _) in axes.items():
            found = tuple(state[name].shape) if name in state else None
            if found is None or axis >= len(found) or found[axis] != size:
                raise StoreError(f"{other}{name} has shape {found}, expected {size} on axis {axis}")
    for name, value in tensors.items():
        shape = list(state[name].shape)
        for axis, (_, index) in positions.get(name, {}).items():
            shape[axis] = len(index)
        if list(value.shape) != shape:
            raise StoreError(f"{other}{name} has shape {list(value.shape)} in the file, {shape} expected")
    for path, values in attributes.items():
        if path not in modules:
            raise StoreError(f"{other}it has no module {path!r}")
        for name, given in values.items():
            old = getattr(modules[path][1], name, None)
            if isinstance(old, tuple) and isinstance(given, list):
                values[name] = given = tuple(given)
            if type(old) is not type(given):
                raise StoreError(f"{other}{path}.{name} is {old!r}, the file has {given!r}")
