"""Images in one folder per class, or in `train` and `test` (or `val`) folders of such folders.

flowers/rose/1.jpg                      flowers/train/rose/1.jpg
flowers/rose/2.png                      flowers/test/rose/2.jpg
flowers/tulip/1.jpg
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from gossamer.data.splits import Splits, normalise, split

SUFFIXES = frozenset((".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"))


def _classes(root: Path) -> list[str]:
    names = sorted(child.name for child in root.iterdir() if child.is_dir() and not child.name.startswith("."))
    if not names:
        raise ValueError(f"imagefolder: {root} has no class folders; expected {root}/CLASS/*.png")
    if len(names) < 2:
        raise ValueError(f"imagefolder: {root} has the one class {names[0]!r}; expected at least two")
    return names


def _files(root: Path, classes: list[str]) -> list[tuple[Path, int]]:
    found: list[tuple[Path, int]] = []
    for label, name in enumerate(classes):
        files = sorted(p for p in (root / name).rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
        if not files:
            raise ValueError(f"imagefolder: {root / name} holds no image ({', '.join(sorted(SUFFIXES))})")
        found += [(file, label) for file in files]
    return found


def _read(files: list[tuple[Path, int]], size: int | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Images as float32 [n, 3, height, width] in 0..1; all of the size of the first unless `size` is given."""
    try:
        from PIL import Image
    except ImportError:
        raise ImportError('data "imagefolder:PATH" needs Pillow: pip install "gossamer[run]"') from None
    pixels: np.ndarray | None = None
    first = (0, 0)
    for i, (file, _) in enumerate(files):
        try:
            with Image.open(file) as opened:
                image = opened.convert("RGB")
        except Exception as error:  # Pillow's decoders raise SyntaxError, OSError, struct.error and more
            raise ValueError(f"imagefolder: {file} is not a readable image: {error}") from error
        if size is not None:
            image = image.resize((size, size), Image.Resampling.BILINEAR)
        if pixels is None:
            first = image.size
            pixels = np.empty((len(files), first[1], first[0], 3), dtype=np.uint8)
        if image.size != first:
            raise ValueError(
                f"imagefolder: {file} is {image.width}x{image.height} pixels, {files[0][0]} {first[0]}x{first[1]}; "
                "expected one size, or an image_size to resize to"
            )
        pixels[i] = np.asarray(image)
    assert pixels is not None  # _files never returns an empty list
    x = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255.0
    return x.contiguous(), torch.tensor([label for _, label in files])


def imagefolder(path: str, *, seed: int, image_size: int | None = None, test_fraction: float = 0.2) -> Splits:
    """Inputs [n, 3, height, width]; class folders in alphabetical order are the labels. All images stay in memory.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: no classes, a class without images, a file that is not an image, images of several sizes.
        ImportError: Pillow is not installed.
    """
    root = Path(path).expanduser()
    if not root.is_dir():
        raise FileNotFoundError(f"imagefolder: there is no folder {root}")
    if image_size is not None and image_size < 1:
        raise ValueError(f"image_size is {image_size}; expected at least 1 pixel")
    held_out = next((root / name for name in ("test", "val") if (root / name).is_dir()), None)
    if (root / "train").is_dir() and held_out is not None:
        classes = _classes(root / "train")
        if _classes(held_out) != classes:
            raise ValueError(
                f"imagefolder: {held_out} has classes {_classes(held_out)}; the training part has {classes}"
            )
        train_files, test_files = _files(root / "train", classes), _files(held_out, classes)
        x, y = _read(train_files + test_files, image_size)
        train, test = torch.arange(len(y)).split((len(train_files), len(test_files)))
    else:
        classes = _classes(root)
        x, y = _read(_files(root, classes), image_size)
        train, test = split(y, test_fraction=test_fraction, seed=seed)
    train_x, test_x = normalise(x[train], x[test])
    return Splits(train_x, y[train], test_x, y[test], len(classes), tuple(classes))
