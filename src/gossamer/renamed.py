"""Modules that moved: their old names work for one more version, with a DeprecationWarning.

May import the standard library only.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any


class _Moved(ModuleType):
    """Stands in `sys.modules` under the old name, so that imports and pickles of it find what has moved."""

    def __init__(self, old: str, new: str, names: Mapping[str, str]) -> None:
        super().__init__(old, f"Moved to {new}.")
        vars(self).update(_new=new, _names=names)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # asked by the import system and by debuggers, of every module
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        message = f"{self.__name__} is {self._new} now; the old name ends with the next version"
        warnings.warn(message, DeprecationWarning, stacklevel=2)
        return getattr(importlib.import_module(self._new), self._names.get(name, name))


def keep_old_names(package: str, moved: Mapping[str, str], names: Mapping[str, str] | None = None) -> None:
    """Let `package.old` stand for `package.new`, for the pairs old -> new. What the package has of that name stays.

    Args:
        names: old -> new, of what has another name in the modules that moved.
    """
    for old, new in moved.items():
        module = _Moved(f"{package}.{old}", f"{package}.{new}", names or {})
        sys.modules[module.__name__] = module
        vars(sys.modules[package]).setdefault(old, module)


def old_attributes(module: str, names: Mapping[str, str]) -> Callable[[str], Any]:
    """A `__getattr__` for a module some of whose names have changed, old -> new."""

    def find(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        message = f"{module}.{name} is {module}.{names[name]} now; the old name ends with the next version"
        warnings.warn(message, DeprecationWarning, stacklevel=2)
        return getattr(sys.modules[module], names[name])

    return find
