"""Checkpoints: one file per stage, replaced as a whole, holding tensors, numbers and text only."""

from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch

FORMAT = 1


def save(path: Path, content: dict[str, Any]) -> None:
    """Write `content` to `path`; a run that dies while writing leaves the file of before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(path.name + ".part")
    with open(draft, "wb") as file:
        torch.save({"format": FORMAT, **content}, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(draft, path)


def load(path: Path, identity: dict[str, Any]) -> dict[str, Any]:
    """Read a checkpoint and make sure that it belongs to this run.

    Raises:
        ValueError: the file is damaged or no checkpoint, or was written by a run with other settings.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, EOFError, KeyError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
        reason = str(error).split("\n", 1)[0]
        raise ValueError(f"checkpoint {path} cannot be read, it is damaged or no checkpoint: {reason}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"checkpoint {path} is not of this program (format {FORMAT} expected)")
    differ(content["identity"], identity, f"checkpoint {path}")
    return content


def differ(there: dict[str, Any], here: dict[str, Any], what: str) -> None:
    """Raise a ValueError that lists every setting in which `there` is not `here`."""
    names = [name for name in {**there, **here} if there.get(name) != here.get(name)]
    if names:
        listed = ", ".join(f"{name} {there.get(name)!r} (now {here.get(name)!r})" for name in names)
        raise ValueError(f"{what} belongs to a run with other settings: {listed}")
