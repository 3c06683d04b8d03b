"""Packages that gossamer does not bring: imported where they are used; one that is missing is named with its extra.

May import nothing of gossamer.
"""

from __future__ import annotations

import importlib
import logging
from types import ModuleType

logger = logging.getLogger(__name__)


def needed(module: str, said: str, extra: str) -> ModuleType:
    """The module, or an ImportError: `said`, which is who needs what, and how to get it.

    >>> needed("json", "the example needs json", "run").dumps([1])
    '[1]'
    """
    try:
        return importlib.import_module(module)
    except ImportError:
        raise ImportError(f'{said}: pip install "gossamer[{extra}]"') from None


def compared(module: str, name: str, extra: str) -> ModuleType | None:
    """A module that a benchmark compares with; None, and a line in the log, where it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError:
        logger.warning("%s is not installed, so its rows are left out: pip install 'gossamer[%s]'", name, extra)
        return None
