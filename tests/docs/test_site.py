"""The pages as a site: all of them are in its table of contents, every public name is on a page, no link is broken."""

from __future__ import annotations

import doctest
import importlib.util
import inspect
import re
import subprocess
import sys
import zlib
from pathlib import Path
from types import ModuleType

import pytest

import gossamer

ROOT = Path(__file__).resolve().parents[2]
SITE = ROOT / "site"


def _module(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, SITE / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


PUBLIC = _module("pages").public()


def test_every_page_is_in_the_table_of_contents():
    contents = (SITE / "mkdocs.yml").read_text().partition("\nnav:")[2].partition("\n\n")[0]
    listed = re.findall(r"^ +- (?:.*: )?(\S+\.md)$", contents, re.MULTILINE)
    pages = [page.name for page in (ROOT / "docs").glob("*.md")]
    assert sorted(listed) == sorted([*pages, "design.md", "contributing.md", "changelog.md"])


def test_every_module_that_gossamer_shows_has_a_page():
    shown = {name for name in gossamer.__all__ if isinstance(getattr(gossamer, name), ModuleType)}
    assert {f"gossamer.{name}" for name in shown} <= set(PUBLIC)
    # A function that is hidden by the module of its name, once somebody has imported that, would be a page here.
    below = {name for name in PUBLIC if name.count(".") > 1}
    assert {name.rpartition(".")[0] for name in below} == {"gossamer.xmc", "gossamer.integrations"}


def _says(value: object) -> bool:
    return not (inspect.isclass(value) or inspect.isroutine(value)) or bool(inspect.getdoc(value))


@pytest.mark.parametrize("module", [name for name, names in PUBLIC.items() if names])
def test_every_public_function_and_class_says_what_it_is(module):
    values = {name: getattr(importlib.import_module(module), name) for name in PUBLIC[module]}
    silent = [name for name, value in values.items() if not _says(value)]
    assert not silent


def test_examples_of_docstrings_become_code():
    pytest.importorskip("griffe", reason="the site needs the extra docs")
    tests = doctest.testmod(_module("examples"))
    assert tests.attempted > 0 and tests.failed == 0


@pytest.mark.slow
def test_the_site_is_built_without_a_warning_and_has_every_name(tmp_path):
    pytest.importorskip("mkdocstrings", reason="the site needs the extra docs")
    command = [sys.executable, "-m", "mkdocs", "build", "-q", "-f", str(SITE / "mkdocs.yml"), "-d", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    inventory = (tmp_path / "objects.inv").read_bytes().split(b"\n", 4)[4]
    found = {line.split()[0] for line in zlib.decompress(inventory).decode().splitlines()}
    names = [(module, name) for module, names in PUBLIC.items() if module != "gossamer" for name in names]
    assert len(names) > 250
    assert [each for each in names if not {".".join(each), f"{'.'.join(each)}.{each[1]}"} & found] == []
