"""Images in one folder per class, or in `train` and `test` (or `val`) folders of such folders.

flowers/rose/1.jpg                      flowers/train/rose/1.jpg
flowers/rose/2.png                      flowers/test/rose/2.jpg
flowers/tulip/1.jpg

The names of the two parts may be written in capitals, and the second one as `valid` or `validation`.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gossamer import extras, files
from gossamer.data.digest import digest
from gossamer.data.splits import Splits, normalise, split

SUFFIXES = frozenset((".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"))


# By content, whatever the name ends with: Pillow knows formats that start other programs.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")


def _classes(root: Path) -> list[str]:
    children = sorted(child for child in root.iterdir() if not child.name.startswith("."))
    for child in children:
        if child.is_symlink() and not child.exists():
            raise ValueError(f"imagefolder: {_shown(child)} is a link that leads nowhere")
    names = [child.name for child in children if child.is_dir()]
    if not names:
        raise ValueError(f"imagefolder: {_shown(root)} has no class folders; expected {_shown(root)}/CLASS/*.png")
    if len(names) < 2:
        raise ValueError(f"imagefolder: {_shown(root)} has the one class {names[0]!r}; expected at least two")
    return names


_TRAIN, _HELD_OUT = ("train",), ("test", "val", "valid", "validation")


def _parts(root: Path) -> tuple[Path, Path] | None:
    """The folders of the training part and of the held-out one; None where the folders are classes.

    Raises:
        ValueError: one of the two is there alone, and would be taken for a class.
    """
    folders = {child.name.lower(): child for child in sorted(root.iterdir(), reverse=True) if child.is_dir()}
    train = next((folders[name] for name in _TRAIN if name in folders), None)
    held_out = next((folders[name] for name in _HELD_OUT if name in folders), None)
    if train is not None and held_out is not None:
        return train, held_out
    if train is not None and len(folders) == 1:
        raise ValueError(
            f"imagefolder: {_shown(root)} holds {train.name} and no test or val beside it; expected both, or "
            f"imagefolder:{_shown(train)}, of which a test part is held out"
        )
    if held_out is not None and folders.keys() <= set(_HELD_OUT):
        raise ValueError(f"imagefolder: {_shown(root)} holds {held_out.name} and no train beside it; expected both")
    return None


def _same_classes(train: Path, held_out: Path, classes: list[str]) -> None:
    """Raise ValueError that names the classes which only one of the two parts has."""
    others = {child.name for child in held_out.iterdir() if child.is_dir() and not child.name.startswith(".")}
    unseen, lost = sorted(others - set(classes)), sorted(set(classes) - others)
    said = [
        f"the classes {names} in {_shown(here)} only" for names, here in ((unseen, held_out), (lost, train)) if names
    ]
    if said:
        raise ValueError(
            f"imagefolder: {_shown(train.parent)} has {' and '.join(said)}; expected the same in both parts"
        )


def _files(root: Path, classes: list[str]) -> list[tuple[Path, int]]:
    found: list[tuple[Path, int]] = []
    for label, name in enumerate(classes):
        mine = sorted(_images(root / name, frozenset({os.path.realpath(root)})))
        if not mine:
            raise ValueError(f"imagefolder: {_shown(root / name)} holds no image ({', '.join(sorted(SUFFIXES))})")
        found += [(file, label) for file in mine]
    return found


def _images(folder: Path, above: frozenset[str]) -> Iterator[Path]:
    """Every image in a folder and those inside it, links followed; nothing that looks like one is passed over."""
    here = os.path.realpath(folder)
    if here in above:
        raise ValueError(f"imagefolder: {_shown(folder)} is a link to a folder that holds it; expected images")
    try:
        names = os.listdir(folder)
    except OSError as error:
        raise ValueError(f"imagefolder: {_shown(folder)} cannot be read: {error.strerror}") from error
    for name in names:
        path = folder / name
        if path.is_dir():
            yield from _images(path, above | {here})
        elif path.suffix.lower() in SUFFIXES:
            if not path.is_file():
                raise ValueError(f"imagefolder: {_shown(path)} is {files.kind(path)}; expected an image")
            yield path


def _shown(path: Path | str) -> str:
    """A name as text, whatever its bytes are."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _open(file: Path) -> Any:
    """The image, its pixels not yet read.

    Raises:
        ValueError: it is none, or is larger than Pillow's limit.
        ImportError: Pillow is not installed.
    """
    extras.needed("PIL", 'data "imagefolder:PATH" needs Pillow', "run")
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            return Image.open(file, formats=FORMATS)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise ValueError(f"imagefolder: {_shown(file)} is too large (PIL.Image.MAX_IMAGE_PIXELS): {error}") from error
    except Exception as error:  # Pillow's decoders raise SyntaxError, OSError, struct.error and more
        raise ValueError(f"imagefolder: {_shown(file)} is not a readable image: {error}") from error


def _size(found: list[tuple[Path, int]], size: int | None) -> tuple[int, int]:
    """(width, height) of all images, from their headers alone: one size, and small enough for this machine together."""
    first = None
    for file, _ in found:
        with _open(file) as image:
            first = first or image.size
            if size is None and image.size != first:
                raise ValueError(
                    f"imagefolder: {_shown(file)} is {image.width}x{image.height} pixels, {_shown(found[0][0])} "
                    f"{first[0]}x{first[1]}; expected one size, or an image_size to resize to"
                )
    assert first is not None  # _files never returns an empty list
    width, height = first if size is None else (size, size)
    needed, memory = len(found) * width * height * 3 * 4, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > memory:
        raise ValueError(
            f"imagefolder: {len(found)} images of {width}x{height} pixels take {needed / 2**30:.1f} GiB, this machine "
            f"has {memory / 2**30:.1f}; expected a smaller image_size"
        )
    return width, height


def _read(found: list[tuple[Path, int]], size: int | None) -> tuple[torch.Tensor, torch.Tensor, str]:
    """Images as float32 [n, 3, height, width] in 0..1, their labels and the digest of both.

    All are of the size of the first unless `size` is given.
    """
    width, height = _size(found, size)
    pixels = np.empty((len(found), height, width, 3), dtype=np.uint8)
    for i, (file, _) in enumerate(found):
        try:
            with _open(file) as opened:
                image = opened.convert("RGB")
        except ValueError:
            raise
        except Exception as error:
            raise ValueError(f"imagefolder: {_shown(file)} is not a readable image: {error}") from error
        pixels[i] = np.asarray(image if size is None else image.resize((size, size), 2))  # 2: bilinear
    x = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255.0
    y = torch.tensor([label for _, label in found], device="cpu")
    return x.contiguous(), y, digest({"pixels": pixels, "y": y})


def imagefolder(path: str, *, seed: int, image_size: int | None = None, test_fraction: float = 0.2) -> Splits:
    """Inputs [n, 3, height, width]; class folders in alphabetical order are the labels. All images stay in memory.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: no classes, a class without images, a file that is no image or too large a one, images of several
            sizes, links in a circle, a folder that cannot be read.
        ImportError: Pillow is not installed.
    """
    root = Path(os.path.expanduser(path))
    if not root.is_dir():
        if os.path.lexists(root):
            raise NotADirectoryError(f"imagefolder: {_shown(root)} is {files.kind(root)}; expected a folder of classes")
        raise FileNotFoundError(f"imagefolder: there is no folder {_shown(root)}")
    if image_size is not None and image_size < 1:
        raise ValueError(f"image_size is {image_size}; expected at least 1 pixel")
    parts = _parts(root)
    if parts is not None:
        classes = _classes(parts[0])
        _same_classes(*parts, classes)
        train_files, test_files = (_files(part, classes) for part in parts)
        x, y, seen = _read(train_files + test_files, image_size)
        seen = f"{seen}, {len(train_files)} to train on"
        train, test = torch.arange(len(y), device="cpu").split((len(train_files), len(test_files)))
    else:
        classes = _classes(root)
        x, y, seen = _read(_files(root, classes), image_size)
        train, test = split(y, test_fraction=test_fraction, seed=seed)
    train_x, test_x = normalise(x[train], x[test])
    return Splits(train_x, y[train], test_x, y[test], len(classes), tuple(map(_shown, classes)), seen)
