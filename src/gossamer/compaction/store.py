"""Compact models on disk: weights as safetensors, shapes as JSON, no pickle.

    compact.json                 format, version, kept positions, module attributes, the weight file, hashes of both
    weights-<hash>.safetensors   every parameter and persistent buffer, once

The JSON names its weight file and is replaced last, in one rename, so a reader finds the old model or the new one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gossamer import extras, files
from gossamer.reshaping import set_data
from gossamer.wrappers import plain_name, plain_names, unwrap

from .attributes import Changes, known_attributes
from .borrow import refuse_shards
from .names import first_names, state_tensors
from .optimizer import sliced
from .record import FORMAT, RECORD, VERSION, Record, StoreError, check_place, is_weights
from .rewrite import history


def _safetensors() -> Any:
    return extras.needed("safetensors.torch", "saving compact models needs safetensors", "run")


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

    Raises:
        NotADirectoryError: `directory` is no folder. FileExistsError: it holds a compact.json of something else.
        ValueError, OSError: it cannot be written. ImportError: safetensors is not installed.
    """
    writer = _safetensors()
    model, directory = unwrap(model), Path(directory)
    check_place(directory)
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
    with files.replacing(directory / weights) as file:
        file.write(data)
    files.write_json(directory / RECORD, files.sealed(shapes))
    for old in directory.glob("weights-*.safetensors"):
        if old.name != weights and is_weights(old.name):
            old.unlink(missing_ok=True)
    return directory


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
    record = Record.read(directory)
    tensors = _read_weights(directory, record, reader)
    if isinstance(factory, nn.Module) or not callable(factory):
        raise TypeError(f"factory must be a function that builds the model, got {type(factory).__name__}")
    model = factory()
    if not isinstance(model, nn.Module):
        raise TypeError(f"factory must return a torch.nn.Module, got {type(model).__name__}")
    model = unwrap(model)
    refuse_shards(model)
    own, modules = _by_plain_name(model)
    state = {plain: state_tensors(model)[name] for plain, name in own.items()}
    other = f"{directory} was saved from another model than factory() builds ({record.model}): "
    _check_tensors(set(_persistent(model)), state, record, tensors, other)
    attributes = _checked_attributes(modules, record, other)
    for name, axes in record.positions.items():
        set_data(state[name], sliced(state[name], {axis: index for axis, (_, index) in axes.items()}))
    for path, values in attributes.items():
        for name, value in values.items():
            setattr(modules[path][1], name, value)
    for name, value in tensors.items():
        # Copied into memory that lies as the factory's does, for a file knows no strides: channels_last stays.
        set_data(state[name], torch.empty_like(state[name].detach(), dtype=value.dtype).copy_(value))
    for path, (_, module) in modules.items():
        for name, value in known_attributes(module).items():
            if getattr(module, name) != value:
                raise StoreError(f"{other}{path}.{name} is {getattr(module, name)}, its tensors have {value}")
    past = history(model)
    past.positions = {own[name]: axes for name, axes in record.positions.items()}
    past.attributes = {modules[path][0]: values for path, values in attributes.items()}
    return model


def _by_plain_name(model: nn.Module) -> tuple[dict[str, str], dict[str, tuple[str, nn.Module]]]:
    """Plain name -> own name of every parameter and buffer; plain path -> (own path, module) inside wrappers."""
    plain = plain_names(model)
    modules = {plain[path]: (path, module) for path, module in model.named_modules(remove_duplicate=False)}
    return {plain_name(plain, name): name for name in state_tensors(model)}, modules


def _read_weights(directory: Path, record: Record, reader: Any) -> dict[str, Tensor]:
    path = directory / record.weights
    try:
        with files.open_file(path) as file:
            data = file.read()
    except (OSError, ValueError) as error:
        raise StoreError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if hashlib.sha256(data).hexdigest() != record.digest:
        raise StoreError(f"{path} is truncated or altered: {len(data)} bytes do not match the recorded hash")
    try:
        return reader.load(data)
    except Exception as error:  # safetensors raises its own SafetensorError, not exported everywhere
        raise StoreError(f"{path} is not a safetensors file: {error}") from error


def _check_tensors(
    expected: set[str], state: dict[str, Tensor], record: Record, tensors: dict[str, Tensor], other: str
) -> None:
    """Compare the tensors before the first change, so that an error leaves nothing half done."""
    if set(tensors) != expected:
        missing, extra = sorted(expected - set(tensors))[:3], sorted(set(tensors) - expected)[:3]
        raise StoreError(f"{other}factory's {missing} are not in the file, the file's {extra} not in the model")
    for name, axes in record.positions.items():
        for axis, (size, _) in axes.items():
            found = tuple(state[name].shape) if name in state else None
            if found is None or axis >= len(found) or found[axis] != size:
                raise StoreError(f"{other}{name} has shape {found}, expected {size} on axis {axis}")
    for name, value in tensors.items():
        shape = list(state[name].shape)
        for axis, (_, index) in record.positions.get(name, {}).items():
            shape[axis] = len(index)
        if list(value.shape) != shape:
            raise StoreError(f"{other}{name} has shape {list(value.shape)} in the file, {shape} expected")
        own = state[name]
        if (value.is_floating_point(), value.is_complex()) != (own.is_floating_point(), own.is_complex()):
            raise StoreError(f"{other}{name} is {value.dtype} in the file, {state[name].dtype} in the model")


def _checked_attributes(modules: dict[str, tuple[str, nn.Module]], record: Record, other: str) -> Changes:
    """The attributes to set, in the types that the modules have; sizes only ever shrink."""
    found: Changes = {}
    for path, values in record.attributes.items():
        if path not in modules:
            raise StoreError(f"{other}it has no module {path!r}")
        for name, given in values.items():
            old: Any = vars(modules[path][1]).get(name)
            before = list(old) if isinstance(old, (tuple, list)) else [old]
            sizes = given if isinstance(given, list) else [given]
            alike = isinstance(given, list) == isinstance(old, (tuple, list)) and len(sizes) == len(before)
            if not alike or any(type(item) is not int for item in before):
                raise StoreError(f"{other}{path}.{name} is {old!r}, the file has {given!r}")
            if any(new > item for new, item in zip(sizes, before, strict=True)):
                raise StoreError(f"{other}{path}.{name} is {old!r}, the file has more: {given!r}")
            found.setdefault(path, {})[name] = type(old)(given)
    return found
