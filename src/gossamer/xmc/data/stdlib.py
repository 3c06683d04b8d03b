"""Python's own library as a data set: the signature and docstring of a function -> the names that its body uses.

It is on every machine, and real: tens of thousands of labels whose frequencies follow a power law. A label is a name
that the body reads and the function does not make itself: of a function, class, module, attribute or method. Which
modules are in the test part depends on their names alone. The same Python installation gives the same bytes; another
one has other functions, so the facts say which it was.
"""

from __future__ import annotations

import ast
import hashlib
import os
import platform
import sysconfig
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from gossamer.xmc.data.csr import Csr
from gossamer.xmc.data.dataset import DataSet, Part
from gossamer.xmc.data.texts import Texts

_LARGEST = 1 << 22  # bytes of a source file; longer ones are tables
_ELSEWHERE = frozenset(("site-packages", "dist-packages", "__pycache__"))
_BODIES = ("body", "handlers", "orelse", "finalbody", "cases")
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


@dataclass(frozen=True)
class Example:
    """A text, the names of its labels, and what decides the part that it belongs to."""

    text: str
    labels: frozenset[str]
    group: str


def stdlib(
    folder: str | os.PathLike[str] | None = None,
    *,
    documented: bool = False,
    min_count: int = 1,
    test_fraction: float = 0.2,
    progress: Callable[[int, int], None] | None = None,
) -> DataSet:
    """Read the functions of this Python's library; nothing of it is run.

    Args:
        folder: another folder of Python modules; None for the library of the Python that runs.
        documented: only functions with a docstring.
        min_count: labels that fewer training examples have are left out.
        test_fraction: share of the modules, chosen by a hash of their names, whose functions are the test part.
        progress: is told (files read, files).

    Returns:
        Texts and label sets; examples without a label, and labels without a training example, are left out.

    Raises:
        FileNotFoundError, NotADirectoryError: there is no such folder.
        ValueError: it holds no function for one of the parts.

    >>> import tempfile, pathlib
    >>> from gossamer import xmc
    >>> with tempfile.TemporaryDirectory() as place:
    ...     code = 'def f(x):\\n    "Its size."\\n    return len(x)\\n'
    ...     for name in "abcdef":
    ...         _ = (pathlib.Path(place) / f"{name}.py").write_text(code)
    ...     data = xmc.data.stdlib(place, test_fraction=0.5)
    >>> data.train.texts[0], list(data.label_texts)
    ('a f(x) Its size.', ['len'])
    """
    root = Path(sysconfig.get_path("stdlib") if folder is None else os.path.expanduser(folder))
    if not root.exists():
        raise FileNotFoundError(f"there is no folder {root}; expected Python's library, or another folder of modules")
    if not root.is_dir():
        raise NotADirectoryError(f"{root} is no folder; expected one of Python modules")
    paths = sorted(_modules(root), key=lambda path: _name(path, root))
    examples: list[Example] = []
    skipped = 0
    for number, path in enumerate(paths):
        tree = _tree(path)
        skipped += tree is None
        if tree is not None:
            examples += _functions(tree, _name(path, root), documented)
        if progress is not None:
            progress(number + 1, len(paths))
    facts: dict[str, str | int | float] = {
        "python": platform.python_version(), "modules": len(paths) - skipped, "unparsable modules": skipped,
    }  # fmt: skip
    return split_by_group(examples, "stdlib", facts, where=str(root), min_count=min_count, test_fraction=test_fraction)


def split_by_group(
    examples: list[Example],
    name: str,
    facts: dict[str, str | int | float],
    *,
    where: str,
    min_count: int,
    test_fraction: float,
) -> DataSet:
    """The data set: a group goes to one part whole, by a hash of its name; labels are numbered by name."""
    if not 0 < test_fraction < 1:
        raise ValueError(f"test_fraction is {test_fraction}; expected a number between 0 and 1")
    if min_count < 1:
        raise ValueError(f"min_count is {min_count}; expected a number from 1")
    tests = {example.group: _in_test(example.group, test_fraction) for example in examples}
    counts: dict[str, int] = {}
    for example in examples:
        if not tests[example.group]:
            for label in example.labels:
                counts[label] = counts.get(label, 0) + 1
    names = sorted(label for label, count in counts.items() if count >= min_count)
    number = {label: i for i, label in enumerate(names)}
    parts = []
    for test, what in ((False, "training"), (True, "test")):
        chosen = [example for example in examples if tests[example.group] is test]
        rows = [(e.text, [number[label] for label in e.labels if label in number]) for e in chosen]
        rows = [(text, row) for text, row in rows if row]
        if not rows:
            raise ValueError(f"{name}: {where} gives no {what} example; expected more, or another test_fraction")
        parts.append(Part(Csr.from_lists([row for _, row in rows], len(names)), None, Texts.of(t for t, _ in rows)))
    return DataSet(parts[0], parts[1], Texts.of(names), name, facts)


def _in_test(group: str, fraction: float) -> bool:
    return int.from_bytes(hashlib.sha256(group.encode("utf-8", "replace")).digest()[:6], "big") < fraction * (1 << 48)


def _modules(root: Path) -> Iterator[Path]:
    for place, folders, names in os.walk(root):
        folders[:] = [folder for folder in folders if folder not in _ELSEWHERE]
        yield from (Path(place) / name for name in names if name.endswith(".py"))


def _name(path: Path, root: Path) -> str:
    return ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")


def _tree(path: Path) -> ast.Module | None:
    """The module, or None: the library has files that are wrong on purpose, for its tests."""
    if not path.is_file() or path.stat().st_size > _LARGEST:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return ast.parse(path.read_bytes())
        except (SyntaxError, ValueError, RecursionError, MemoryError, OSError):
            return None


def _functions(tree: ast.Module, module: str, documented: bool) -> Iterator[Example]:
    """Every function of a module, in the order of the file; one inside another is an example of its own too."""
    nothing: frozenset[str] = frozenset()
    waiting: list[tuple[ast.AST, str, frozenset[str]]] = [(node, "", nothing) for node in reversed(tree.body)]
    while waiting:
        node, prefix, made = waiting.pop()
        if isinstance(node, _FUNCTIONS):
            read, mine = _names(node)
            made |= mine
            documentation = ast.get_docstring(node)
            if documentation or not documented:
                text = f"{module} {prefix}{node.name}({ast.unparse(node.args)}) {documentation or ''}"
                yield Example(" ".join(text.split()), frozenset(read - made), module)
        if isinstance(node, (*_FUNCTIONS, ast.ClassDef)):
            prefix = f"{prefix}{node.name}."
        # Functions are statements, and these lie in no expression.
        below = [child for field in _BODIES for child in getattr(node, field, ())]
        waiting += [(child, prefix, made) for child in reversed(below)]


def _names(node: ast.FunctionDef | ast.AsyncFunctionDef) -> tuple[set[str], set[str]]:
    """What the body of a function reads, and what it and its arguments make."""
    read: set[str] = set()
    made = {argument.arg for argument in ast.walk(node.args) if isinstance(argument, ast.arg)}
    for statement in node.body:
        for part in ast.walk(statement):
            if isinstance(part, ast.Name):
                (read if isinstance(part.ctx, ast.Load) else made).add(part.id)
            elif isinstance(part, ast.Attribute):
                read.add(part.attr)
            elif isinstance(part, (*_FUNCTIONS, ast.ClassDef)):
                made.add(part.name)
            elif isinstance(part, ast.arg):
                made.add(part.arg)
            elif isinstance(part, ast.ExceptHandler) and part.name:
                made.add(part.name)
    return read, made
