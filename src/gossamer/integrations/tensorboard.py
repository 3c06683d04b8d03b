"""TensorBoard events of a training run: one scalar per name and step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gossamer import extras


class Events:
    """Scalars written to `folder` as they come; `Events(None)` writes nothing.

    Args:
        folder: where the event file goes.
        resume_at: events of this step and later, left by an interrupted run, are hidden.
        suffix: end of the name of the event file, by which its writer knows it again.

    Raises:
        ImportError: tensorboard is not installed.
        OSError: the folder cannot be written; so do the methods.
    """

    def __init__(self, folder: Path | None, *, resume_at: int = 0, suffix: str = "") -> None:
        self._writer: Any = None
        self._folder = folder
        if folder is None:
            return
        tensorboard: Any = extras.needed("torch.utils.tensorboard", "events need tensorboard", "run")
        with self._named():
            self._writer = tensorboard.SummaryWriter(
                str(folder), purge_step=resume_at + 1 if resume_at else None, filename_suffix=suffix
            )

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Write each value under its name at `step`."""
        if self._writer is not None:
            with self._named():
                for name, value in values.items():
                    self._writer.add_scalar(name, value, step)
                self._writer.flush()  # what a full disk refused is said now, not at some later event

    def close(self) -> None:
        """Finish the event file."""
        if self._writer is not None:
            with self._named():
                self._writer.close()

    @contextmanager
    def _named(self) -> Iterator[None]:
        """Errors of the disk say what was to be written."""
        try:
            yield
        except OSError as error:
            raise OSError(error.errno, f"events in {self._folder} cannot be written: {error.strerror}") from error
