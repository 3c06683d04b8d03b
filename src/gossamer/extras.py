"""Packages that gossamer does not bring: imported where they are used; one that is missing is named with its extra.

May import nothing of gossamer.
"""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import logging
import operator
import platform
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

logger = logging.getLogger(__name__)

COMMANDS = {
    "tour": "tour", "profile": "run", "train": "run", "bench": "bench", "tune": "run", "xmc": "xmc", "model": "serving",
    "generate": "serving", "calibrate": "serving", "route": "serving", "serve": "server",
}  # fmt: skip
"""The extra that brings what a command of `gossamer` may need."""
_PACKAGES = {"sklearn": "scikit-learn", "PIL": "pillow"}
_REQUIREMENT = re.compile(
    r"\s*(?P<name>[\w.-]+)\s*(?:\[(?P<nested>[^]]*)\])?\s*(?P<versions>[^;]*)(?:;(?P<marker>.*))?"
)


def needed(module: str, said: str, extra: str) -> ModuleType:
    """The module, or an ImportError: `said`, which is who needs what, and how to get it.

    >>> needed("json", "the example needs json", "run").dumps([1])
    '[1]'
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f"{said}{_remedy(module, error, extra)}") from None


def explained(error: ModuleNotFoundError, who: str, extra: str | None) -> ImportError:
    """What to say when `who` met a module that is not there: how to get it, if the extra brings it."""
    module = (error.name or "").partition(".")[0]
    package = _PACKAGES.get(module, module.replace("_", "-"))
    if extra is None or package not in packages(extra):
        return error
    return ImportError(f"{who} needs {package}{_remedy(module, error, extra)}", name=error.name)


def compared(module: str, name: str, extra: str) -> ModuleType | None:
    """A module that a benchmark compares with; None, and a line in the log, where it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        logger.warning("%s is not there, so its rows are left out%s", name, _remedy(module, error, extra))
        return None


def _remedy(module: str, error: ImportError, extra: str) -> str:
    """What to do about it: the command that brings what the extra lacks, or why what is there cannot be imported."""
    there = not isinstance(error, ModuleNotFoundError) or (error.name or "").split(".")[0] != module.split(".")[0]
    if there and not missing(extra):
        return f"; it is installed and cannot be imported: {error}"
    return f": {command(extra)} (gossamer[{extra}])"


def command(extra: str) -> str:
    """The command that installs what an extra lacks here; it names packages, which pip finds wherever gossamer is from.

    >>> command("no such extra")
    'pip install "gossamer[no such extra]"'
    """
    brought = packages(extra)
    lacking = [requirement for name, requirement in brought.items() if version(name) is None]
    wanted = lacking or list(brought.values()) or [f"gossamer[{extra}]"]
    return "pip install " + " ".join(f'"{each}"' for each in wanted)


def missing(extra: str) -> list[str]:
    """The packages of an extra that are not installed."""
    return [name for name in packages(extra) if version(name) is None]


def version(package: str) -> str | None:
    """The version of an installed package; None where it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def known() -> list[str]:
    """The extras that gossamer's own metadata names; none where it is not installed."""
    marks = [found["marker"] for found in _requirements() if found["marker"]]
    return list(dict.fromkeys(name for mark in marks for name in re.findall(r"extra\s*==\s*['\"]([\w.-]+)", mark)))


def packages(extra: str, seen: frozenset[str] = frozenset()) -> dict[str, str]:
    """The packages of an extra that are for this system, {name: requirement}, those of extras that it includes too."""
    found: dict[str, str] = {}
    for each in _requirements():
        if not each["marker"] or not _holds(each["marker"], extra) or _holds(each["marker"], ""):
            continue
        if each["name"] == "gossamer":  # an extra that includes others, such as gossamer[run,onnx]
            for other in re.findall(r"[\w.-]+", each["nested"] or ""):
                if other not in seen | {extra}:
                    found |= packages(other, seen | {extra})
        else:
            found[each["name"]] = each["name"] + each["versions"].strip(" ()").replace(" ", "")
    return found


def _requirements() -> list[re.Match[str]]:
    try:
        said = importlib.metadata.requires("gossamer") or []
    except importlib.metadata.PackageNotFoundError:
        return []
    return [found for each in said if (found := _REQUIREMENT.fullmatch(each)) is not None]


def _holds(marker: str, extra: str) -> bool:
    """Whether a requirement's marker (PEP 508) holds here, for an extra."""
    here = {
        "extra": extra, "sys_platform": sys.platform, "python_version": ".".join(platform.python_version_tuple()[:2]),
        "platform_machine": platform.machine(), "platform_system": platform.system(),
    }  # fmt: skip

    def value(node: ast.expr) -> bool:
        if isinstance(node, ast.BoolOp):
            values = map(value, node.values)
            return all(values) if isinstance(node.op, ast.And) else any(values)
        assert isinstance(node, ast.Compare)
        left, right = (here[each.id] if isinstance(each, ast.Name) else ast.literal_eval(each)
                       for each in (node.left, node.comparators[0]))  # fmt: skip
        if isinstance(node.left, ast.Name) and node.left.id == "python_version":
            left, right = (tuple(map(int, each.split("."))) for each in (left, right))
        return _COMPARED[type(node.ops[0])](left, right)

    return value(ast.parse(marker.strip(), mode="eval").body)


_COMPARED: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Eq: operator.eq, ast.NotEq: operator.ne, ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt,
    ast.GtE: operator.ge, ast.In: lambda a, b: a in b, ast.NotIn: lambda a, b: a not in b,
}  # fmt: skip


@contextmanager
def no_progress_bars() -> Iterator[None]:
    """Inside, transformers draws no progress bars: they are drawn into files too, and what is read takes a moment."""
    from transformers.utils import logging as shown_by

    shown = shown_by.is_progress_bar_enabled()
    shown_by.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            shown_by.enable_progress_bar()
