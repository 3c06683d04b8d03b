"""Packages that gossamer does not bring: imported where they are used; one that is missing is named with its extra.

May import nothing of gossamer.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
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
