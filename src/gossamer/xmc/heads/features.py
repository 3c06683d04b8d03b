"""Sparse features beside dense inputs: a head reads both as one, of the features only what its batch has."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from gossamer.xmc.data.csr import Csr
from gossamer.xmc.encoders.encoder import Encoder, Inputs
from gossamer.xmc.heads.base_head import Head

CACHED = 1 << 18  # floats
_NUMPY = {torch.uint16: np.uint16, torch.int32: np.int32}


def features_of(encoder: Encoder, head: Head, inputs: Inputs) -> Csr | None:
    """What the head reads beside the encoder's vectors of these inputs; None where it reads the vectors alone."""
    return None if head.width == encoder.width else encoder.features(inputs)


def beside(x: Tensor, features: Csr | None, indices: Tensor) -> tuple[Tensor, Tensor]:
    """The same products, to the last bit, by fewer inputs: [x | features that some row has | zeros], indices into it.

    A batch has a few hundred of many thousand words; all others are one input that is zero in every row. A batch whose
    inputs all stay in the cache is written out, and `indices` stay as they are: a single text is not to wait for them.

    Args:
        x: [batch, width]. features: [batch, f] with values, the inputs from `width` on; None: there are none.
        indices: uint16 or int32, below width + f.

    >>> x = torch.tensor([[5.0], [6.0]])
    >>> words = Csr(torch.tensor([0, 1, 1]), torch.tensor([2]), torch.tensor([7.0]), (2, 4))
    >>> beside(x, words, torch.tensor([[0, 3], [2, 4]], dtype=torch.uint16))[0]
    tensor([[5., 0., 0., 7., 0.],
            [6., 0., 0., 0., 0.]])
    """
    if features is None:
        return x, indices
    assert features.values is not None
    (batch, width), f = x.shape, features.shape[1]
    small = batch * (width + f) <= CACHED
    columns, place = features.indices.unique(return_inverse=True)
    both = x.new_zeros(batch, width + (f if small else len(columns) + 1))
    both[:, :width] = x
    owner = torch.repeat_interleave(torch.arange(batch, device="cpu"), features.counts())
    column = features.indices.long() if small else place
    both[owner.to(x.device), width + column.to(x.device)] = features.values.to(x.device, x.dtype)
    if small:
        return both, indices
    absent = width + len(columns) if len(columns) < f else 0  # which 16 bits may not hold otherwise
    table = np.full(width + f, absent, _NUMPY[indices.dtype])
    table[:width] = np.arange(width)
    table[width + columns.numpy()] = np.arange(width, width + len(columns))
    # numpy looks up 16-bit indices as they are, for which torch has no such operation.
    return both, torch.from_numpy(table[indices.cpu().numpy()]).to(indices.device)
