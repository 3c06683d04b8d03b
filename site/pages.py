"""What the site has beside docs/: files of the root as pages, and a page of names for each public module.

A hook of MkDocs. Links between docs/ and the root are turned to where the pages are on the site, and pictures are put
into their page, so that they follow its colours.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import re
import sys
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import gossamer

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
FROM_ROOT = {"DESIGN.md": "design.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
STYLE = {"site/site.css": "site.css"}
PICTURE = re.compile(r"!\[[^\]]*\]\((?:docs/)?(pictures/[\w-]+\.svg)\)")
QUARTILES = re.compile(r"(\d+\.\d+x) \((\S+) to (\S+)\)")
FOOT = re.compile(r"^(.* threads, .*, commit [0-9a-f]+\+?, .*)$", re.MULTILINE)
COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
LINK = re.compile(r"\]\((?:\.\./|docs/)*([\w./-]+\.md)(#[\w-]+)?\)")


def _names(module: ModuleType) -> list[str]:
    """The names of its `__all__`, or the functions and classes that it defines."""
    if hasattr(module, "__all__"):
        return [name for name in module.__all__ if not name.startswith("_")]
    defined = ast.parse(Path(str(module.__file__)).read_text()).body
    kinds = (ast.FunctionDef, ast.ClassDef)
    return [node.name for node in defined if isinstance(node, kinds) and not node.name.startswith("_")]


@cache
def public() -> dict[str, list[str]]:
    """Each public module and its public names: what gossamer.__all__ shows, and the modules that it reaches."""
    found: dict[str, list[str]] = {}

    def add(module: ModuleType) -> None:
        found[module.__name__] = []
        for name in _names(module):
            value = getattr(module, name)
            if not isinstance(value, ModuleType):
                found[module.__name__].append(name)
            elif value.__name__ == f"{module.__name__}.{name}":
                add(value)

    add(gossamer)
    for info in pkgutil.iter_modules(gossamer.integrations.__path__, "gossamer.integrations."):
        add(importlib.import_module(info.name))
    return found


def _page_of(name: str, names: list[str]) -> str:
    """A module's page: its own docstring, then those of its names."""
    if name == "gossamer":  # its names are those of modules, which have them on their pages
        modules = "\n".join(f"- [`{each}`]({_short(each)}.md): {_about(each)}" for each in public() if each != name)
        shown = ", ".join(f"[`gs.{each}`]({_home(each)}.md)" for each in names)
        return f"# Every name\n\n`import gossamer as gs` shows {shown}, and these modules:\n\n{modules}\n"
    # A function that is called as the module that has it: MkDocs finds the module under that name.
    modules = {info.name for info in pkgutil.iter_modules(getattr(sys.modules[name], "__path__", []))}
    alone = [each for each in names if each in modules]
    members = ", ".join(each for each in names if each not in alone)
    page = f"# {name}\n\n::: {name}\n    options: {{ members: [{members}] }}\n"
    return page + "".join(f"\n::: {name}.{each}.{each}\n    options: {{ show_root_heading: true }}\n" for each in alone)


def _home(name: str) -> str:
    """The page of the module that a name of gossamer's own comes from."""
    return next(_short(module) for module, names in public().items() if module != "gossamer" and name in names)


def _about(module: str) -> str:
    return (inspect.getdoc(sys.modules[module]) or "").partition("\n\n")[0].replace("\n", " ")


def _short(module: str) -> str:
    return module.removeprefix("gossamer.") if module != "gossamer" else "index"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    from mkdocs.structure.files import File

    pages = {page: (ROOT / name).read_text() for name, page in {**FROM_ROOT, **STYLE}.items()}
    names = {f"api/{_short(name)}.md": _page_of(name, names) for name, names in public().items()}
    for page, content in {**pages, **names}.items():
        files.append(File.generated(config, page, content=content))
    config.nav = [*(config.nav or []), {"Every name": list(names)}]
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    if page.file.src_uri.startswith("api/"):
        return markdown
    text = FOOT.sub(r"\1\n{: .foot }", QUARTILES.sub(r"\1&nbsp;(\2&nbsp;to&nbsp;\3)", COMMENT.sub("", markdown)))
    return PICTURE.sub(_drawn, LINK.sub(_turned, text))


def _turned(link: re.Match[str]) -> str:
    """A link of a file of docs/, or of the root, to where that page is on the site."""
    target, anchor = link.groups()
    place = {**FROM_ROOT, "README.md": "index.md"}.get(target, target)
    return f"]({place}{anchor or ''})"


def _drawn(picture: re.Match[str]) -> str:
    return f'<div class="drawn">{(ROOT / "docs" / picture[1]).read_text().strip()}</div>'
