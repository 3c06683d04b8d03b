"""Which channels can go without changing a single output, judged from the model's values.

Channel c is dead when every operator that sums over it gets nothing from it: each term x_c * w[o, c] that reaches an
output has x_c = 0 known in advance, or w[o, c] = 0, or an output o that nobody reads either. One pass forward finds
the constants (values.py), one pass backward finds who is read, which is the fixpoint of the cascade both ways.

Any subset of the dead channels may be removed: a channel whose value others rely on is never reported.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from gossamer.wrappers import unwrap

from .graph import ChannelGraph
from .names import state_tensors
from .reads import Reads
from .values import Interpreter


@dataclass
class Liveness:
    """Result of the analysis. `constants[group][c]` = the nonzero constant channel c carries at its readers, or NaN."""

    dead: dict[str, Tensor]
    constants: dict[str, Tensor]
    reads: Reads


def dead(graph: ChannelGraph, model: nn.Module, *, training: bool | None = None) -> dict[str, Tensor]:
    """The channels of every removable group that `model` can lose exactly.

    Args:
        graph: built for `model`'s present shapes.
        model: its current parameter and buffer values are read, nothing is changed.
        training: True demands exactness in train mode too (batch statistics, dropout); None = `model.training`.

    Returns:
        group name -> bool tensor [channels], True = can be removed. One channel of a group always stays.

    >>> import torch
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
    >>> graph = ChannelGraph.build(net, torch.zeros(1, 4))
    >>> _ = net[2].weight.data[:, 1].zero_()
    >>> dead(graph, net)
    {'0': tensor([False,  True, False])}
    """
    return analyse(graph, model, training=training).dead


@torch.inference_mode(False)
def analyse(graph: ChannelGraph, model: nn.Module, *, training: bool | None = None) -> Liveness:
    """`dead` together with the constants that keep other channels alive."""
    model = unwrap(model)
    training = model.training if training is None else training
    flow = graph.flow
    state = {name: tensor.detach().cpu() for name, tensor in state_tensors(model).items()}
    run = Interpreter(flow.capture, state, training=training)
    reads = Reads(graph.flow, run)
    alive = np.unique(np.concatenate([np.zeros(0, dtype=np.int64), *reads.alive]))
    varying = {root for roots in reads.varying for root in roots.tolist()}
    result, constants = {}, {}
    for group, roots in zip(graph.groups, graph.roots, strict=True):
        if group.frozen is not None:
            continue
        gone = torch.from_numpy(~np.isin(roots, alive))
        if bool(gone.all()):
            gone[0] = False
        result[group.name] = gone
        values = np.full(len(roots), np.nan)
        for channel, root in enumerate(roots.tolist()):
            if root in reads.constant and root not in varying:
                values[channel] = reads.constant[root]
        constants[group.name] = torch.from_numpy(values)
    return Liveness(result, constants, reads)
