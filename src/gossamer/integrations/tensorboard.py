"""TensorBoard events of a training run: one scalar per name and step."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any


class Events:
    """Scalars written to `folder` as they come; `Events(None)` writes nothing.

    Args:
        folder: where the event file goes.
        resume_at: events of this step and later, left by an interrupted run, are hidden.

    Raises:
        ImportError: tensorboard is not installed.
    """

    def __init__(self, folder: Path | None, *, resume_at: int = 0) -> None:
        self._writer: Any = None
        if folder is None:
            return
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise ImportError('events need tensorboard: pip install "gossamer[run]", or leave them out') from None
        self._writer = SummaryWriter(str(folder), purge_step=resume_at + 1 if resume_at else None)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Write each value under its name at `step`."""
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Finish the event file."""
        if self._writer is not None:
            self._writer.close()
