"""Data sets of extreme classification: label sets and sparse features as `Csr`, texts, and the published formats.

May import torch, numpy, `files` and `data`; scipy is imported by whoever asks for its matrices.
"""

from gossamer.xmc.data.csr import Csr
from gossamer.xmc.data.dataset import DataSet, Part
from gossamer.xmc.data.debtags import debtags
from gossamer.xmc.data.load import load
from gossamer.xmc.data.planted import Planted, planted
from gossamer.xmc.data.save import save
from gossamer.xmc.data.stdlib import stdlib
from gossamer.xmc.data.texts import Texts

__all__ = ["Csr", "DataSet", "Part", "Planted", "Texts", "debtags", "load", "planted", "save", "stdlib"]
