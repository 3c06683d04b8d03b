"""Data sets of extreme classification: label sets and sparse features as `Csr`.

May import torch and numpy only; scipy is imported by whoever asks for its matrices.
"""

from gossamer.xmc.data.csr import Csr

__all__ = ["Csr"]
