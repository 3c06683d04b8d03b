"""Kill channels by value: zero everything that makes, scales and reads them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gossamer.wrappers import unwrap

from .graph import ChannelGraph
from .names import state_tensors
from .rewrite import kept_positions


@torch.inference_mode(False)
def zero_channels_(model: nn.Module, graph: ChannelGraph, keep: dict[str, Tensor]) -> None:
    """Zero, in place, all writers, readers and norm parameters of the channels that `keep` marks False.

    Afterwards the channels carry nothing in eval and in train mode, so `dead` reports them. Running statistics stay:
    with zero weight and bias they no longer matter.

    Args:
        model: the model `graph` was built for.
        graph: its channel graph.
        keep: group name -> bool tensor [channels]; groups not named are untouched.

    Raises:
        KeyError, ValueError: as `shrink_`; nothing has changed.

    >>> import torch
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
    >>> graph = ChannelGraph.build(net, torch.zeros(1, 4))
    >>> zero_channels_(net, graph, {"0": torch.tensor([True, False, True])})
    >>> net[0].bias[1].item(), net[2].weight[:, 1].tolist()
    (0.0, [0.0, 0.0])
    """
    model = unwrap(model)
    kept_positions(model, graph, keep)
    state = state_tensors(model)
    with torch.no_grad():
        for name, mask in keep.items():
            for member in graph.group(name).members:
                if member.role != "stat":
                    tensor = state[member.tensor]
                    index = member.index[~mask.cpu()].reshape(-1).to(tensor.device)
                    tensor.index_fill_(member.axis, index, 0)
