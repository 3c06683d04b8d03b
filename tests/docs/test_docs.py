"""The docs are programs: every ```python block of README.md and docs/ runs, every docstring example holds.

The blocks of one page share one namespace and run top to bottom, in an empty folder. What a block prints is what
stands, indented, right below it; `...` there stands for any text.
"""

from __future__ import annotations

import ast
import contextlib
import doctest
import importlib
import io
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import gossamer

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    *(ROOT / name for name in ("README.md", "DESIGN.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]
BLOCK = re.compile(r"^```python\n(.*?)^```\n(?:\n((?:    [^\n]*\n|\n)+))?", re.DOTALL | re.MULTILINE)
INDENTED = re.compile(r"(?<=\n\n)((?:    [^\n]*\n|\n(?=    ))+)")
ANY = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
LINK = re.compile(r"\]\((?!https?://|#)([^)#]+)(?:#[^)]*)?\)")
MODULES = sorted(
    info.name
    for info in pkgutil.walk_packages(gossamer.__path__, "gossamer.")
    if not info.name.endswith("__main__") and "_native" not in info.name
)


def _source(name: str) -> str:
    place = ROOT / "src" / name.replace(".", "/")
    return (place / "__init__.py" if place.is_dir() else place.with_suffix(".py")).read_text()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_block_of_the_page_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "__main__"}
    text = page.read_text()
    for match in BLOCK.finditer(text):
        line = text.count("\n", 0, match.start(1)) + 1
        # Pad with blank lines: a traceback then shows the page's own line number.
        source = "\n" * (line - 1) + match.group(1)
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(source, str(page), "exec"), namespace)
        if (match[2] or "").strip():
            shown = re.sub("^    ", "", match[2], flags=re.MULTILINE).strip("\n")
            assert doctest.OutputChecker().check_output(shown, printed.getvalue().strip("\n"), ANY), (
                f"{page.name}:{line} prints\n{printed.getvalue()}and not\n{shown}"
            )


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_that_is_not_run_says_why(page):
    """Python stands in blocks that run, or in ```py behind a comment with the reason; server.md's meet a server."""
    text = BLOCK.sub("", page.read_text())
    if page.name != "server.md":
        assert text.count("```py\n") == len(re.findall(r"^<!-- not run: .+ -->\n```py\n", text, re.MULTILINE))
    assert not [block for block in INDENTED.findall(text) if _is_program(block)]


def _is_program(block: str) -> bool:
    try:
        parsed = ast.parse(re.sub("^    ", "", block, flags=re.MULTILINE))
    except SyntaxError:
        return False
    return any(isinstance(node, (ast.Call, ast.Import, ast.ImportFrom)) for node in ast.walk(parsed))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_to_a_file(page):
    missing = [link for link in LINK.findall(page.read_text()) if not (page.parent / link).exists()]
    assert not missing


@pytest.mark.parametrize("name", [name for name in MODULES if ">>>" in _source(name)])
def test_docstring_examples(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if name.startswith("gossamer.kernels.triton"):
        pytest.importorskip("triton", reason="the Triton kernels' module cannot be imported without triton")
    module = importlib.import_module(name)
    import torch

    failed, _ = doctest.testmod(module, extraglobs={"torch": torch, "gs": gossamer}, optionflags=doctest.ELLIPSIS)
    assert failed == 0


def test_every_module_can_be_imported():
    for name in MODULES:
        if not name.startswith("gossamer.kernels.triton"):
            importlib.import_module(name)


def test_import_brings_nothing_optional():
    """`import gossamer` and its lazily loaded core must work with torch and numpy alone."""
    optional = ["triton", "transformers", "sklearn", "matplotlib", "safetensors", "tqdm", "tyro", "onnx", "PIL"]
    code = (
        "import sys\n"
        "import torch\n"
        "before = set(sys.modules)\n"
        "import gossamer as gs\n"
        "gs.Pattern, gs.detect, gs.ops, gs.training, gs.compact, gs.compaction, gs.models, gs.data, gs.measure\n"
        "new = {name.split('.')[0] for name in set(sys.modules) - before}\n"
        f"bad = sorted(new & set({optional}))\n"
        "assert not bad, bad\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
