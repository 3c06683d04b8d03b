"""Every command that the docs show is one: flags are parsed, targets are in the Makefile, extras in pyproject."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import pytest

from gossamer.cli.__main__ import main

if sys.version_info >= (3, 11):
    import tomllib
else:
    import pip._vendor.tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    *(ROOT / name for name in ("README.md", "DESIGN.md", "CONTRIBUTING.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]
START = r"(?:[A-Z_]+=\S+ )*"
SHOWN = re.compile(
    rf"^(?:    |\$ )?{START}((?:gossamer|torchrun|make|pip install) .*)$|`(gossamer [a-z]+ [^`\n]+)`", re.MULTILINE
)
PLACEHOLDER = re.compile(r"\b[A-Z]{2,}\b|\.\.\.|[<>|\[\]]")


def _commands() -> list[str]:
    found = dict.fromkeys(one or two for page in PAGES for one, two in SHOWN.findall(page.read_text()))
    # A command named in a sentence has at least an argument; else its name alone is meant.
    return [each for each in found if each.startswith("pip") or not PLACEHOLDER.search(shlex.join(_words(each)))]


def _words(command: str) -> list[str]:
    """Its words, without a comment behind it."""
    return shlex.split(command, comments=True)


class _Parsed(BaseException):
    """Raised in place of running what has been parsed."""


@pytest.mark.parametrize("command", _commands())
def test_the_command_is_one(command, monkeypatch, capsys):
    tyro = pytest.importorskip("tyro", reason="commands have their flags by tyro")
    name, *words = _words(command)
    if name == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert set(words) <= set(targets)
        return
    if name == "pip":
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        named = re.findall(r"gossamer\[(.+?)\]", " ".join(words))
        assert {each for some in named for each in some.split(",")} <= set(extras)
        return
    if name == "torchrun":
        words = [word for word in words[words.index("-m") + 1 :] if word != "--"][1:]
    parse = tyro.cli

    def parsed(*args, **settings):
        parse(*args, **settings)
        raise _Parsed

    monkeypatch.setattr(tyro, "cli", parsed)
    try:
        status = main(words)  # those without flags of their own run
    except _Parsed:
        status = 0
    said = capsys.readouterr().err
    assert status == 0 or "there is no run there to continue" in said, said  # --resume: flags are a folder's
