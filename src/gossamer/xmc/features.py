"""Sparse features beside dense inputs: a head reads both as one, of the features only what its batch has."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from gossamer.xmc.base_head import Head
from gossamer.xmc.data.csr import Csr
from gossamer.xmc.encoders.encoder import Encoder, Inputs


def features_of(encoder: Encoder, head: Head, inputs: Inputs) -> Csr | None:
    """What the head reads beside the encoder's vectors of these inputs; None where it reads the vectors alone."""
    return None if head.width == encoder.width else encoder.features(inputs)


def beside(x: Tensor, features: Csr | None, indices: Tensor) -> tuple[Tensor, Tensor]:
    """The same products by fewer inputs: ([x | features that some row has | zeros], indices into that).

    A batch has a few hundred of many thousand words. All others are one input that is zero in every row.

    Args:
        x: [batch, width]. features: [batch, f] with values, the inputs from `width` on; None: there are none.
        indices: uint16 or int32, below width + f.

    >>> x = torch.tensor([[5.0], [6.0]])
    >>> words = Csr(torch.tensor([0, 1, 1]), torch.tensor([2]), torch.tensor([7.0]), (2, 4))
    >>> beside(x, words, torch.tensor([[0, 3], [2, 4]], dtype=torch.uint16))
    (tensor([[5., 7., 0.],
            [6., 0., 0.]]), tensor([[0, 1],
            [2, 2]], dtype=torch.uint16))
    """
    if features is None:
        return x, indices
    assert features.values is not None
    batch, width = x.shape
    columns, place = features.indices.unique(return_inverse=True)
    owner = torch.repeat_interleave(torch.arange(batch), features.counts())
    both = x.new_zeros(batch, width + len(columns) + 1)
    both[:, :width] = x
    both[owner.to(x.device), width + place.to(x.device)] = features.values.to(x.device, x.dtype)
    absent = width + len(columns) if len(columns) < features.shape[1] else 0  # which 16 bits may not hold otherwise
    table = np.full(width + features.shape[1], absent, _NUMPY[indices.dtype])
    table[:width] = np.arange(width)
    table[width + columns.numpy()] = np.arange(width, width + len(columns))
    # numpy looks up 16-bit indices as they are, for which torch has no such operation.
    return both, torch.from_numpy(table[indices.cpu().numpy()]).to(indices.device)


_NUMPY = {torch.uint16: np.uint16, torch.int32: np.int32}
