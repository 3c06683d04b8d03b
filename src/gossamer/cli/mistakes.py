"""What is wrong with a command line: one sentence that names the flag, its value and what was expected.

Asked only after a parser has refused the line, so nothing that is right is ever called wrong here.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
import types
import typing
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from gossamer.spelling import suggestion


def unknown(what: str, word: str, known: Iterable[str]) -> str:
    """A sentence on a name that is none of the known ones.

    >>> unknown("command", "trian", ("train", "tune"))
    "there is no command 'trian'; expected train or tune; did you mean train?"
    """
    names = list(known)
    listed = " or ".join(filter(None, (", ".join(names[:-1]), names[-1])))
    return f"there is no {what} {word!r}; expected {listed}{suggestion(word, names)}"


@dataclasses.dataclass(frozen=True)
class Flag:
    """One field of a command's flags: its spellings (none for a positional argument) and what its value may be."""

    name: str
    spellings: tuple[str, ...]
    kinds: tuple[Any, ...]
    required: bool

    @property
    def switch(self) -> bool:
        """It takes no value: `--dense`, `--no-dense`."""
        return self.kinds == (bool,) and bool(self.spellings)

    @property
    def several(self) -> bool:
        """It takes any number of values."""
        return any(typing.get_origin(kind) is tuple for kind in self.kinds)

    @property
    def expected(self) -> str:
        """What a value of it looks like."""
        said = [_described(kind) for kind in self.kinds if kind is not type(None)]
        return " or ".join(dict.fromkeys(said))

    def takes(self, word: str) -> bool:
        """Whether `word` can be its value."""
        return any(_fits(kind, word) for kind in self.kinds)


def flags(kind: type) -> list[Flag]:
    """The flags of a dataclass, as tyro spells them."""
    hints = typing.get_type_hints(kind, include_extras=True)
    found = []
    for field in dataclasses.fields(kind):
        if not field.init:
            continue
        hint = hints[field.name]
        notes: list[Any] = []
        if typing.get_origin(hint) is typing.Annotated:
            hint, *notes = typing.get_args(hint)
        kinds = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        spellings: tuple[str, ...] = ()
        if not any("Positional" in repr(note) for note in notes):
            said = field.name.replace("_", "-")
            aliases = [name for note in notes for name in getattr(note, "aliases", None) or ()]
            spellings = (f"--{said}", *([f"--no-{said}"] if kinds == (bool,) else []), *aliases)
        found.append(Flag(field.name, spellings, kinds, required))
    return found


def mistake(kind: type, arguments: Sequence[str]) -> str | None:
    """The first mistake in the arguments of a command whose flags are the fields of `kind`; None if there is none.

    >>> from gossamer.cli.train.config import Train
    >>> mistake(Train, ["--densty", "0.1"])
    "there is no flag '--densty'; did you mean --density?"
    >>> mistake(Train, ["--density", "half"])
    "--density is 'half'; expected a number"
    """
    known = flags(kind)
    named = {name: flag for flag in known for name in flag.spellings}
    places = [flag for flag in known if not flag.spellings]
    given: set[str] = set()
    at = 0
    while at < len(arguments):
        word, at = arguments[at], at + 1
        if not _is_flag(word):
            wrong = _placed(word, places, given, arguments[at - 2] if at > 1 else "", named)
        else:
            name, equals, value = word.partition("=")
            flag = named.get(name.replace("_", "-") if name.startswith("--") else name)
            if flag is None:
                return f"there is no flag {name!r}{_near(name, named)}"
            given.add(flag.name)
            behind = [] if equals or flag.switch else list(itertools.takewhile(_is_value, arguments[at:]))
            behind = behind if flag.several else behind[:1]
            at += len(behind)
            wrong = _valued(flag, name, [value] if equals else behind)
        if wrong is not None:
            return wrong
    for flag in known:
        if flag.required and flag.name not in given:
            return f"{flag.spellings[0] if flag.spellings else flag.name.upper()} is missing"
    return None


def _is_flag(word: str) -> bool:
    return word.startswith("-") and word != "-" and re.fullmatch(r"-\.?\d.*", word) is None


def _is_value(word: str) -> bool:
    return not _is_flag(word)


def _near(name: str, named: dict[str, Flag]) -> str:
    word = name.partition("=")[0].lstrip("-").replace("_", "-")
    return suggestion(word, [each[2:] for each in named if each.startswith("--")]).replace("mean ", "mean --")


def _placed(word: str, places: list[Flag], given: set[str], before: str, named: dict[str, Flag]) -> str | None:
    """What is wrong with a word that belongs to no flag; it takes the next place otherwise."""
    free = next((flag for flag in places if flag.name not in given or flag.several), None)
    if free is not None:
        given.add(free.name)
        return None if free.takes(word) else _refused(free.name.upper(), word, free)
    if before in named and named[before].switch:
        off = next((name for name in named[before].spellings if name.startswith("--no-")), None)
        advice = f"; {off} turns it off" if off and off != before else ""
        return f"{before} takes no value, got {word!r}{advice}"
    return f"{word!r} belongs to no flag{_near(word, named)}"


def _valued(flag: Flag, name: str, values: list[str]) -> str | None:
    """What is wrong with the values of a flag."""
    if flag.switch:
        return f"{name} takes no value, got {values[0]!r}" if values else None
    if not values and not flag.several:
        return f"{name} has no value; expected {flag.expected}"
    return next((_refused(name, word, flag) for word in values if not flag.takes(word)), None)


def _refused(name: str, word: str, flag: Flag) -> str:
    choices = [choice for kind in flag.kinds for choice in _choices(kind)]
    return f"{name} is {word!r}; expected {flag.expected}{suggestion(word, choices)}"


def _choices(kind: Any) -> tuple[str, ...]:
    return tuple(map(str, typing.get_args(kind))) if typing.get_origin(kind) is typing.Literal else ()


def _described(kind: Any) -> str:
    if typing.get_origin(kind) is tuple:
        return f"any number of values, each {_described(typing.get_args(kind)[0])}"
    if typing.get_origin(kind) is typing.Literal:
        return f"one of {', '.join(_choices(kind))}"
    return {int: "a whole number", float: "a number", bool: "True or False", Path: "a path"}.get(kind, "a text")


def _fits(kind: Any, word: str) -> bool:
    if typing.get_origin(kind) is tuple:
        return _fits(typing.get_args(kind)[0], word)
    if typing.get_origin(kind) is typing.Literal:
        return word in _choices(kind)
    if kind is type(None):
        return word == "None"
    if kind in (int, float):
        try:
            kind(word)
        except ValueError:
            return False
    return True
