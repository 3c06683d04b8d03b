"""Command-line flags from a frozen dataclass."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Sequence
from typing import TypeVar

from gossamer import extras

Config = TypeVar("Config")


def needs_tyro() -> None:
    """Raise an ImportError that says how to get tyro when it is not installed."""
    extras.needed("tyro", "this command needs tyro", "run")


def use_threads(count: int | None) -> None:
    """Have torch use so many CPU threads; None: its own choice."""
    if count is not None:
        if count < 1:
            raise ValueError(f"--threads must be at least 1, got {count}")
        import torch

        torch.set_num_threads(count)


def parse(kind: type[Config], program: str, arguments: Sequence[str]) -> Config:
    """Build `kind` from the arguments; `--help` prints its fields and their docstrings and exits.

    Raises:
        ImportError: tyro is not installed.
        ValueError: an unknown flag or a value of the wrong type.
    """
    needs_tyro()
    import tyro

    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(kind, prog=program, args=list(arguments))
    except SystemExit as leaving:
        if not leaving.code:
            raise
    # tyro draws a box with a title, the complaint, a ruler and a pointer to --help; the complaint is one line here.
    lines = [line.strip("│ ") for line in said.getvalue().splitlines() if line.startswith("│")]
    complaint = [line for line in lines[: next((i for i, s in enumerate(lines) if set(s) == {"─"}), None)] if line]
    text = re.sub(r"\s+", " ", " ".join(complaint)) or said.getvalue().strip()
    raise ValueError(f"{text} ({program} --help lists the flags)")


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
