"""A progress bar on a terminal, nothing elsewhere."""

from __future__ import annotations

import sys
from typing import Any

from gossamer import extras


class Progress:
    """Steps of one stage, beginning with the `done` ones of an earlier run."""

    def __init__(self, name: str, done: int, total: int, *, shown: bool) -> None:
        self._bar: Any = None
        if shown and sys.stderr.isatty():
            tqdm = extras.needed("tqdm", "the progress bar needs tqdm", "run").tqdm
            self._bar = tqdm(total=total, initial=done, desc=f"{name:6}", unit="step")

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def to(self, step: int) -> None:
        """`step` steps are done."""
        if self._bar is not None:
            self._bar.update(step - self._bar.n)

    def note(self, text: str) -> None:
        """Say `text` behind the bar."""
        if self._bar is not None:
            self._bar.set_postfix_str(text)
