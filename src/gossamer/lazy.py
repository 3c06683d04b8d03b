"""The names of a package, each imported from its module when it is first asked for.

    __getattr__, __dir__ = surface(__name__, {"Classifier": "gossamer.xmc.classifier"}, ("metrics",))

So importing a package imports nothing of it. May import nothing of gossamer but `extras`.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from gossamer import extras


def surface(
    package: str, names: Mapping[str, str], modules: Iterable[str] = (), *, extra: str | None = None
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` of a package.

    Args:
        names: those that the package shows, and the modules that have them.
        modules: those of the package that are shown themselves.
        extra: what brings the packages that the modules import; an ImportError for one of them names it.

    >>> getattr_, dir_ = surface("json", {"loads": "json"}, ("decoder",))
    >>> dir_(), getattr_("decoder").__name__
    (['decoder', 'loads'], 'json.decoder')
    """
    shown = frozenset(modules)

    def get(name: str) -> Any:
        try:
            if name in shown:
                return importlib.import_module(f"{package}.{name}")
            if name in names:
                value = getattr(importlib.import_module(names[name]), name)
                setattr(sys.modules[package], name, value)
                return value
        except ModuleNotFoundError as error:
            raise extras.explained(error, f"{package}.{name}", extra) from None
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return get, lambda: sorted({*shown, *names})
