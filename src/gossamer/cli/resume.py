"""`--resume DIR`: a run goes on with the settings that it wrote down, so that its folder alone is enough."""

from __future__ import annotations

import dataclasses
import os
import shlex
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from gossamer.cli.flags import parse
from gossamer.cli.mistakes import flags
from gossamer.owned import Record

Config = TypeVar("Config")
_ASIDE = ("out", "resume", "overwrite", "debug")


def settings(config: Any) -> dict[str, Any]:
    """What a run writes down of its flags, as plain data: all but those that say where and how it starts."""
    return {
        field.name: str(value) if isinstance(value := getattr(config, field.name), Path) else value
        for field in dataclasses.fields(config)
        if field.name not in _ASIDE
    }


def continued(kind: type[Config], program: str, arguments: Sequence[str], record: Record) -> Config:
    """The flags of a run; with --resume, those that are not given are the ones that it was started with.

    Args:
        kind: their dataclass, with `out` and `resume`.
        program: the command, for what is said. arguments: as typed.
        record: what a folder of such a run is known by; its "settings" are what `settings` gave.

    Raises:
        ValueError, ImportError: as `parse` does. FileNotFoundError: there is no run in DIR. Others of `Record.find`.
    """
    given, named = _split(kind, arguments, record)
    if "--resume" not in given:
        return parse(kind, program, given)
    out = Path(_out(kind, given))
    found = record.find(out, "--resume " if named else "--out ")
    if found is None and named:
        raise FileNotFoundError(
            f"--resume {out}: there is no run there to continue; expected the --out of an earlier one"
        )
    return parse(kind, program, given, default=_restored(kind, found or {}))


def again(kind: type, program: str, arguments: Sequence[str], record: Record) -> str:
    """The command that continues the run with these flags; the same command again where nothing of it was written."""
    given, _ = _split(kind, arguments, record)
    out = Path(_out(kind, given))
    if (out / record.file).is_file():
        return shlex.join([*program.split(), "--resume", str(out)])
    return shlex.join([*program.split(), *arguments])


def _split(kind: type, arguments: Sequence[str], record: Record) -> tuple[list[str], bool]:
    """The arguments with `--resume DIR` written as `--resume --out DIR`, and whether it was there.

    The word behind --resume is its folder unless the command takes a word of its own and that is no folder of a run.
    """
    given, alone = list(arguments), all(flag.spellings for flag in flags(kind))
    for at, word in enumerate(given):
        name, equals, value = word.partition("=")
        if name != "--resume":
            continue
        if not equals:
            value = given[at + 1] if at + 1 < len(given) and not given[at + 1].startswith("-") else ""
        if not value or not (equals or alone or os.path.lexists(Path(value) / record.file)):
            break
        rest = given[:at] + given[at + (1 if equals else 2) :]
        other = _value("--out", rest)
        if other is not None and Path(other) != Path(value):
            raise ValueError(f"--resume {value} and --out {other} are two folders; expected one of them")
        return [*rest, "--resume", *([] if other is not None else ["--out", value])], True
    return given, False


def _value(flag: str, arguments: Sequence[str]) -> str | None:
    """The last value of a flag."""
    found = None
    for at, word in enumerate(arguments):
        if word == flag and at + 1 < len(arguments):
            found = arguments[at + 1]
        elif word.startswith(f"{flag}="):
            found = word.partition("=")[2]
    return found


def _out(kind: type, arguments: Sequence[str]) -> str:
    default = next(field.default for field in dataclasses.fields(kind) if field.name == "out")
    return _value("--out", arguments) or str(default)


def _restored(kind: type[Config], found: dict[str, Any]) -> Config | None:
    """The flags that a run was started with; None where it wrote none down, as older ones did not."""
    said = found.get("settings")
    if not isinstance(said, dict):
        return None
    hints = typing.get_type_hints(kind)
    known = {field.name for field in dataclasses.fields(kind) if field.init} - set(_ASIDE)  # type: ignore[arg-type]
    values = {name: _as(hints[name], value) for name, value in said.items() if name in known}
    return kind(**values)


def _as(hint: Any, value: Any) -> Any:
    """A value that was plain data, as its field has it."""
    if isinstance(value, list):
        return tuple(value)
    if isinstance(value, str) and (hint is Path or Path in typing.get_args(hint)):
        return Path(value)
    return value
