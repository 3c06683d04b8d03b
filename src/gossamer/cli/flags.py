"""Command-line flags from a frozen dataclass."""

from __future__ import annotations

import contextlib
import io
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from gossamer import files
from gossamer.cli.mistakes import mistake

Config = TypeVar("Config")
_SEEDS = -(2**63), 2**63 - 1  # what torch's generators take; a command that takes less says so itself


def needs_tyro() -> None:
    """Import tyro before anything that takes longer; `main` says which extra has it where it is not installed."""
    import tyro  # noqa: F401


def use_threads(count: int | None) -> None:
    """Have torch use so many CPU threads; None: its own choice."""
    check_threads(count)
    if count is not None:
        import torch

        torch.set_num_threads(count)


def check_threads(count: int | None) -> None:
    """Raise a ValueError for a number of threads that no machine like this can have."""
    if count is not None:
        most = 8 * max(os.cpu_count() or 1, 16)  # OpenMP ends the process where it gets no more of them
        if not 1 <= count <= most:
            raise ValueError(f"--threads must be at {'least 1' if count < 1 else f'most {most}'}, got {count}")


def use_device(name: str) -> str:
    """A device by the name that --device has.

    Raises:
        ValueError: it is none, or this machine has none of that kind.
    """
    import torch

    kind, _, number = name.partition(":")
    if kind not in ("cpu", "cuda") or (number and not number.isdigit()):
        raise ValueError(f"--device is {name!r}; expected cpu, cuda or cuda:N")
    count = torch.cuda.device_count()
    if kind == "cuda" and int(number or 0) >= count:
        raise ValueError(f"--device is {name!r}, but torch sees {count} CUDA devices")
    return name


def check_new(flag: str, target: Path, what: str, read: Callable[[Path], object], *, overwrite: bool) -> None:
    """See that a result could be written before the work that it costs, and that it replaces nothing unasked.

    Args:
        what: such a result, in words.
        read: raises a ValueError for a file that is none: what is not ours is not replaced by asking for it either.

    Raises:
        FileExistsError: `target` is there, and it is none of ours, or `overwrite` does not allow for it.
        ValueError, OSError: it could not be written (`files.check_target`).
    """
    files.check_target(target)
    if not os.path.lexists(target):
        return
    try:
        read(target)
    except (ValueError, OSError) as error:
        raise FileExistsError(
            f"{flag} {target} is there already and is not {what}, so it is not replaced ({error}); name another place"
        ) from None
    if not overwrite:
        raise FileExistsError(f"{flag} {target} is there already; --overwrite replaces it, or name another place")


def text_of(flag: str, path: Path, *, limit: int = 1 << 28) -> str:
    """The text of a file that a flag names, in UTF-8.

    Raises:
        ValueError: it cannot be read, is no file, is larger than `limit` bytes, or no text; the flag is named.
    """
    try:
        return files.read(path, limit=limit).decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{flag} {path} is not a text in UTF-8: byte {error.start} is none") from None
    except OSError as error:
        raise ValueError(f"{flag} {path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise ValueError(f"{flag} {path} cannot be read: {error}") from None


def parse(kind: type[Config], program: str, arguments: Sequence[str], *, default: Config | None = None) -> Config:
    """Build `kind` from the arguments; `--help` prints its fields and their docstrings and exits.

    Args:
        default: what fields have that the arguments do not name; their own defaults when None.

    Raises:
        ModuleNotFoundError: tyro is not installed.
        ValueError: an unknown flag or a value of the wrong type, or a seed that no generator takes.
    """
    needs_tyro()
    import tyro

    said = io.StringIO()
    more = {} if default is None else {"default": default}
    try:
        with contextlib.redirect_stderr(said):
            config: Config = tyro.cli(kind, prog=program, args=list(arguments), **more)  # type: ignore[call-overload]
            _check_seed(config)
            return config
    except SystemExit as leaving:
        if not leaving.code:
            raise
    # What tyro says is a picture of several lines for a terminal; it is for what is not known here, such as an error of
    # the dataclass, which has its own words.
    picture = re.sub(r"[\s│─╭╮╰╯]+|-{4,}", " ", said.getvalue()).strip()
    own = re.search(rf"Error parsing {kind.__name__}: (.*?)(?: For full helptext|$)", picture)
    raise ValueError(f"{mistake(kind, arguments) or (own[1] if own else picture)} ({program} --help lists the flags)")


def _check_seed(config: object) -> None:
    seed = getattr(config, "seed", None)
    if seed is not None and not _SEEDS[0] <= seed <= _SEEDS[1]:
        raise ValueError(f"--seed is {seed}; expected a whole number from {_SEEDS[0]} to {_SEEDS[1]}")


_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}


def as_bytes(said: str | None) -> int | None:
    """Bytes of a size like 800M or 2G; None stays None.

    >>> as_bytes("1.5G")
    1610612736
    """
    if said is None:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmg]?)i?b?", said.strip().lower())
    if found is None or not float(found[1]):
        raise ValueError(f"--memory must be a size like 800M or 2G, got {said!r}")
    return int(float(found[1]) * _UNITS[found[2]])
