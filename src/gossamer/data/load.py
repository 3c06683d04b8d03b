"""Choose a data set by its name: `digits`, `imagefolder:PATH` or `npz:PATH`."""

from __future__ import annotations

from pathlib import Path

from gossamer.data.digits import digits
from gossamer.data.imagefolder import imagefolder
from gossamer.data.npz import npz
from gossamer.data.splits import Splits
from gossamer.spelling import suggestion


def load(source: str, *, seed: int = 0, image_size: int | None = None, test_fraction: float = 0.2) -> Splits:
    """Load a data set into memory.

    Args:
        source: "digits", "imagefolder:PATH" (one folder per class) or "npz:PATH" (arrays x and y).
        seed: of the split into training and test part, where the data does not bring its own.
        image_size: resize the images of a folder to this many pixels on both edges.
        test_fraction: share held out of each class, where the data does not bring its own test part.

    Returns:
        `Splits`: float32 inputs, int64 labels, normalised by the training part.

    Raises:
        ValueError, FileNotFoundError: the source is unknown, missing, empty or damaged; the message names the file.
        ImportError: the package that reads this kind of data is not installed.

    >>> import gossamer as gs
    >>> data = gs.data.load("digits", seed=0)
    >>> data.train_x.shape, data.test_x.shape, data.classes
    (torch.Size([1438, 1, 8, 8]), torch.Size([359, 1, 8, 8]), 10)
    """
    kind, _, path = source.partition(":")
    if source == "digits":
        if image_size is not None:
            raise ValueError(f"image_size is {image_size}, but digits are 8x8 pixels; it is for imagefolder:PATH")
        return digits(seed=seed, test_fraction=test_fraction)
    if kind == "imagefolder" and path:
        return imagefolder(path, seed=seed, image_size=image_size, test_fraction=test_fraction)
    if kind == "npz" and path:
        if image_size is not None:
            raise ValueError(f"image_size is {image_size}, but npz arrays keep their size; it is for imagefolder:PATH")
        return npz(path, seed=seed, test_fraction=test_fraction)
    raise ValueError(f"data is {source!r}; expected digits, imagefolder:PATH or npz:PATH{_meant(source)}")


def _meant(source: str) -> str:
    """What was meant by a source without its kind, or misspelt."""
    path = Path(source).expanduser()
    if path.is_dir():
        return f"; did you mean imagefolder:{source}?"
    if path.suffix in (".npz", ".npy") or path.is_file():
        return f"; did you mean npz:{source}?"
    kind, kinds = source.partition(":")[0], ("digits", "imagefolder", "npz")
    return "" if kind in kinds else suggestion(kind, kinds)
