"""Real images that need no download: the two photographs and the digits that scikit-learn brings."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

import gossamer as gs
from gossamer import extras


def photographs(batch: int, side: int) -> Tensor:
    """float32[batch, 3, side, side]: crops of a temple and a flower, each image normalised as a whole.

    Raises:
        ImportError: scikit-learn or Pillow is not installed.
    """
    extras.needed("PIL", "the photographs need Pillow", "run")
    found = extras.needed("sklearn.datasets", "the photographs need scikit-learn", "run").load_sample_images().images
    generator = torch.Generator().manual_seed(0)
    out = []
    for i in range(batch):
        image = torch.tensor(found[i % len(found)]).permute(2, 0, 1).float()  # a copy: the original is read-only
        height, width = image.shape[1:]
        size = int(torch.randint(min(side, height // 2), height + 1, (), generator=generator))
        top = int(torch.randint(0, height - size + 1, (), generator=generator))
        left = int(torch.randint(0, width - size + 1, (), generator=generator))
        crop = image[:, top : top + size, left : left + size]
        crop = F.interpolate(crop[None], size=(side, side), mode="bilinear", antialias=True)[0]
        crop = crop.flip(2) if i // len(found) % 2 else crop
        out.append((crop - crop.mean()) / crop.std())
    return torch.stack(out)


def digits(side: int, seed: int) -> gs.data.Splits:
    """The handwritten digits, enlarged to `side` pixels and three equal channels."""
    splits = gs.data.load("digits", seed=seed)

    def large(x: Tensor) -> Tensor:
        return F.interpolate(x, size=(side, side), mode="bilinear").expand(-1, 3, -1, -1).contiguous()

    return gs.data.Splits(large(splits.train_x), splits.train_y, large(splits.test_x), splits.test_y, splits.classes)
