"""1797 handwritten digits of 8x8 pixels, bundled with scikit-learn (UCI optical recognition of handwritten digits)."""

from __future__ import annotations

import torch

from gossamer import extras
from gossamer.data.digest import digest
from gossamer.data.splits import Splits, normalise, split


def digits(*, seed: int, test_fraction: float = 0.2) -> Splits:
    """Inputs [n, 1, 8, 8], ten classes, split anew for each seed.

    Raises:
        ImportError: scikit-learn is not installed.
    """
    load_digits = extras.needed("sklearn.datasets", 'data "digits" needs scikit-learn', "run").load_digits
    bunch = load_digits()
    x = torch.from_numpy(bunch.images).float().unsqueeze(1) / 16.0
    y = torch.from_numpy(bunch.target).long()
    train, test = split(y, test_fraction=test_fraction, seed=seed)
    train_x, test_x = normalise(x[train], x[test])
    return Splits(train_x, y[train], test_x, y[test], 10, tuple("0123456789"), digest({"x": x, "y": y}))
