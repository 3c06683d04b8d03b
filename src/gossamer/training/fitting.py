"""Which channel groups a network's own code lets go: tried on a copy before the first of their channels is removed.

The graph says which slices belong together. Whether the code between them follows (a width written as a number, a view)
shows only when the channels are gone; a channel that could never be cut out must not be trained away.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from gossamer.compaction import ChannelGraph, ChannelGroup, StructureError, shrink_

logger = logging.getLogger(__name__)


def unfit(network: nn.Module, graph: ChannelGraph, groups: Mapping[str, ChannelGroup]) -> dict[str, str]:
    """The groups whose channels cannot be cut out of `network`, with the reason of each; `network` stays as it is."""
    keep = {name: torch.arange(group.channels) < (group.channels + 1) // 2 for name, group in groups.items()}
    return _try(network, graph, {name: mask for name, mask in keep.items() if not bool(mask.all())})


def _try(network: nn.Module, graph: ChannelGraph, keep: dict[str, Tensor]) -> dict[str, str]:
    """All at once, as it should be; in halves where that fails."""
    if not keep:
        return {}
    try:
        twin = copy.deepcopy(network)
    except (RuntimeError, TypeError) as error:
        logger.warning("%s cannot be copied, so its channels are not tried: %s", type(network).__name__, error)
        return {}
    try:
        shrink_(twin, graph, keep)
    except StructureError as error:
        names = list(keep)
        if len(names) == 1:
            return {names[0]: str(error)}
        found: dict[str, str] = {}
        for half in (names[: len(names) // 2], names[len(names) // 2 :]):
            found |= _try(network, graph, {name: keep[name] for name in half})
        return found
    return {}
