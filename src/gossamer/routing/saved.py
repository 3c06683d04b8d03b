"""What was learned about a model's routes, on disk, with the model that it belongs to.

One safetensors file; its metadata has, as JSON with a checksum, what the tensors are for and whose, and their SHA-256.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gossamer import extras, files
from gossamer.routing.radial import Radial
from gossamer.routing.stack import text_config
from gossamer.spelling import suggestion

VERSION = 1
_KEY = "gossamer.routing"
_NOT_CONFIG = ("_name_or_path", "transformers_version", "torch_dtype", "dtype", "architectures", "use_cache")


class StateError(ValueError):
    """A file that holds no state of routing, a damaged one, or that of another model; the message names the file."""


def identity(radial: Radial) -> dict[str, Any]:
    """What a model must have in common with another one for its routes to mean anything there."""
    config = text_config(radial.model)
    plain = {
        name: value for name, value in config.to_dict().items()
        if name not in _NOT_CONFIG and not name.startswith("_") and not isinstance(value, torch.dtype)
    }  # fmt: skip
    digest = hashlib.sha256(json.dumps(plain, sort_keys=True, default=str).encode()).hexdigest()
    adapters = radial.adapters
    return {
        "model": type(radial.model).__name__,
        "config": digest[:16],
        "units": len(radial.units),
        "kind": radial.kind,
        "width": radial.stack.width,
        "mode": radial.mode,
        "kv": radial.kv,
        "hops": radial.hops,
        "sink": radial.sink,
        "policy": type(radial.policy).__name__,
        "adapter": 0 if adapters is None else int(next(adapters.parameters()).shape[0]),
    }


def save_state(radial: Radial, path: str | os.PathLike[str]) -> Path:
    """Write the policy and the adapters of a model, not the model's own weights.

    Raises:
        ValueError, OSError: the file cannot be written.
        ImportError: safetensors is not installed.
    """
    return write(path, "router", {"identity": identity(radial)}, _routing(radial))


def load_state(radial: Radial, path: str | os.PathLike[str]) -> None:
    """Take policy and adapters from a file; nothing is changed where that fails.

    Raises:
        StateError: the file is damaged or holds something else, or belongs to another model: both are named.
    """
    record, tensors = read(path, "router")
    check_identity(path, record, radial)
    assign(path, _routing(radial), tensors)


SHIPPED = {"smollm2": Path(__file__).parent / "routers" / "smollm2.safetensors"}
"""Models of `gossamer model` that have a router: its file, a name that `load_routed` takes."""


def load_routed(model: Any, path: str | os.PathLike[str]) -> Radial:
    """A model routed as a file says, which `save_state` wrote for one with the same settings.

    Args:
        model: a ...ForCausalLM of transformers.
        path: of the file; or "smollm2", whose router comes with this package (where no file has that name).

    Raises:
        StateError: there is none; as `load_state`; or its policy is not one that `Radial` makes by itself.
    """
    if not os.path.exists(path):
        name = os.fspath(path)
        if name not in SHIPPED:
            raise StateError(
                f"there is no router {name!r}; expected a file of `gossamer route distill`, or a name: "
                f"{', '.join(SHIPPED)}{suggestion(name, SHIPPED)}"
            )
        path = SHIPPED[name]
    record, _ = read(path, "router")
    said = record["identity"]
    if said["policy"] not in ("Jumps", "Hops"):
        raise StateError(f"{path} holds a policy {said['policy']}; make the Radial with it, and use load_state")
    radial = Radial(
        model, said["mode"], said["kv"], units=said["kind"], adapter=said["adapter"],
        sink=said["sink"], hops=said["hops"] if said["mode"] == "free" else None,
    ).eval()  # fmt: skip
    load_state(radial, path)
    return radial


def _routing(radial: Radial) -> dict[str, Tensor]:
    tensors = {f"policy.{name}": value for name, value in radial.policy.state_dict().items()}
    if radial.adapters is not None:
        tensors |= {f"adapters.{name}": value for name, value in radial.adapters.state_dict().items()}
    return tensors


def check_identity(path: str | os.PathLike[str], record: Mapping[str, Any], radial: Radial) -> None:
    """Raise StateError unless a record belongs to this model.

    What it does not say is not compared: configs say more with each version of transformers, so a router for everybody
    says what its model is made of, and not the rest of its config.
    """
    found, mine = record.get("identity"), identity(radial)
    if not isinstance(found, dict) or not found:
        raise StateError(f"{path} does not say which model it belongs to")
    mine = {name: value for name, value in mine.items() if name != "config" or name in found}
    if found != mine:
        names = [name for name in mine if found.get(name) != mine[name]]
        theirs, ours = (", ".join(f"{name}={each.get(name)}" for name in names) for each in (found, mine))
        raise StateError(f"{path} belongs to another model: it has {theirs}, expected {ours}")


def assign(path: str | os.PathLike[str], targets: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    """Copy each tensor into that of its name, all or none."""
    if targets.keys() != tensors.keys():
        raise StateError(f"{path} has the tensors {_few(tensors)}, expected {_few(targets)}")
    for name, target in targets.items():
        found = tensors[name]
        if found.shape != target.shape or found.dtype != target.dtype:
            raise StateError(
                f"{path} has {name} {found.dtype}{list(found.shape)}, expected {target.dtype}{list(target.shape)}"
            )
    with torch.no_grad():
        for name, target in targets.items():
            target.copy_(tensors[name])


def _few(names: Mapping[str, Any]) -> str:
    some = sorted(names)
    return ", ".join(some[:4]) + (f" and {len(some) - 4} more" if len(some) > 4 else "")


def write(path: str | os.PathLike[str], kind: str, record: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Path:
    """Write a record and tensors in one step: whole, or the file of before stays."""
    writer: Any = extras.needed("safetensors.torch", "saving routers needs safetensors", "serving")
    plain = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    sealed = files.sealed({"kind": kind, "version": VERSION, **record, "tensors": _digest(plain)})
    files.check_target(path)
    with files.replacing(path) as file:
        file.write(writer.save(plain, metadata={_KEY: json.dumps(sealed)}))
    return Path(path)


def read(path: str | os.PathLike[str], kind: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The record and the tensors of a file that `write` wrote.

    Raises:
        StateError: it cannot be read, is damaged, of a newer version or of another kind.
    """
    reader: Any = extras.needed("safetensors", "loading routers needs safetensors", "serving")
    try:
        files.open_file(path).close()
        with reader.safe_open(os.fspath(path), framework="pt") as file:
            text = (file.metadata() or {}).get(_KEY)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
    except (OSError, ValueError, reader.SafetensorError) as error:
        raise StateError(f"{path} cannot be read: {error}") from None
    if text is None:
        raise StateError(f"{path} is a safetensors file of something else; expected the state of a router")
    try:
        record = files.parse_json(text)
        files.check_seal(record)
    except (ValueError, AttributeError) as error:
        raise StateError(f"{path}: {error}") from None
    if record.get("version") != VERSION:
        raise StateError(f"{path} has version {record.get('version')}, expected {VERSION}")
    if record.get("kind") != kind:
        raise StateError(f"{path} holds a {record.get('kind')}, expected a {kind}")
    if record.pop("tensors") != _digest(tensors):
        raise StateError(f"{path} is damaged: its tensors do not match their checksum")
    return record, tensors


def _digest(tensors: Mapping[str, Tensor]) -> str:
    total = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name]
        total.update(f"{name} {value.dtype} {list(value.shape)}\n".encode())
        total.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()
