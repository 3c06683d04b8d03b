"""Data sets as plain tensors: `digits` (bundled with scikit-learn), a folder of images, or an npz file of arrays.

May import torch and numpy only; scikit-learn and Pillow are imported when a data set needs them.
"""

from gossamer.data.batches import batches, steps_per_epoch
from gossamer.data.load import load
from gossamer.data.splits import Splits

__all__ = ["Splits", "batches", "load", "steps_per_epoch"]
