"""How channels of different groups are compared, and how many each group keeps.

UMM says which channels of one group matter least. Between groups it says little: it falls with the fan-in, and its
spread is mostly that of the initial weights. By "cost" each group loses a share of its channels that grows with the
square root of what one of them costs. Operations weigh three times as much as weights: then a VGG-16 that loses 40 % of
its channels keeps a quarter of its operations and a ResNet-50 half, and neither loses most of its first layers, as it
would if operations were all that counted.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gossamer.compaction.borrow import evaluating, undisturbed
from gossamer.measure.count import flops_by_module
from gossamer.training.channels import Channels
from gossamer.wrappers import seen_through

COMPARISONS = ("cost", "group", "none")
OPERATIONS = 0.75
"""The exponent of a channel's operations in its cost; that of its weights is what is left to 1."""


def costs(channels: Channels) -> dict[str, float]:
    """What one channel of each group costs: weights that make or read it ** 1/4 * operations with them ** 3/4.

    The operations are those of one evaluation of the graph's example inputs; only their ratios matter. An operator
    whose operations torch cannot count uses each weight once.
    """
    network, inputs = channels.network, channels.first_graph.example_inputs
    with evaluating(network), undisturbed(network), seen_through(network), torch.no_grad():
        flops = flops_by_module(network, inputs)
    result = {}
    for name, group in channels.groups.items():
        weights, operations = 0, 0.0
        for member in group.members:
            tensor = network.get_parameter(member.tensor) if member.role != "stat" else None
            if tensor is None or tensor.ndim < 2 or tensor.numel() == 0:
                continue
            own = tensor.numel() // tensor.shape[member.axis] * member.index.shape[1]
            weights += own
            uses = flops.get(member.tensor.rpartition(".")[0], 0) / tensor.numel()
            operations += own * (uses or 2.0)
        result[name] = max(weights, 1) ** (1.0 - OPERATIONS) * max(operations, 1.0) ** OPERATIONS
    return result


def comparable(
    scores: dict[str, Tensor],
    alive: dict[str, Tensor],
    normalize: str,
    *,
    original: dict[str, int],
    costs: dict[str, float],
) -> dict[str, Tensor]:
    """Scores by which channels of all groups can be ranked together; inside a group the order stays.

    "cost": (channels gone + rank among the living + 1/2) / original channels / sqrt(cost): a group whose channels cost
    c times as much loses sqrt(c) times the share. "group": the score over the mean of the group's living. "none": the
    score itself.

    >>> scores, alive = {"a": torch.tensor([3.0, 1.0])}, {"a": torch.tensor([True, True])}
    >>> comparable(scores, alive, "cost", original={"a": 4}, costs={"a": 4.0})["a"]
    tensor([0.4375, 0.3125], dtype=torch.float64)
    """
    if normalize == "none":
        return scores
    result = {}
    for name, score in scores.items():
        living = score[alive[name]]
        if normalize == "group":
            result[name] = score / living.mean().clamp_min(1e-300)
            continue
        rank = torch.zeros(len(score), dtype=torch.float64, device="cpu")
        rank[alive[name]] = torch.argsort(torch.argsort(living, stable=True), stable=True).to(torch.float64)
        gone = original[name] - len(living)
        result[name] = (gone + rank + 0.5) / original[name] / math.sqrt(costs[name])
    return result


def widths(
    scores: dict[str, Tensor],
    alive: dict[str, Tensor],
    *,
    floors: dict[str, int],
    remove: int,
    steps: dict[str, int] | None = None,
) -> dict[str, int]:
    """How many channels each group keeps when `remove` channels of smallest score go, over all groups.

    The channels are walked in the order (score, group, channel); one whose group is at its floor is passed over. With
    `steps` the width of each group moves to a multiple of its step, those nearest below first, and the number removed
    stays exact: at most one group keeps an odd width (more only where floors or the original widths are odd).

    Raises:
        ValueError: the floors do not allow that many.

    Example:
        >>> scores = {"a": torch.tensor([0.1, 0.5, 0.2]), "b": torch.tensor([0.3, 0.05])}
        >>> alive = {name: torch.ones(len(s), dtype=torch.bool) for name, s in scores.items()}
        >>> widths(scores, alive, floors={"a": 1, "b": 1}, remove=3)
        {'a': 1, 'b': 1}
    """
    names = list(scores)
    result = {name: int(alive[name].sum()) for name in names}
    most = sum(result[name] - floors[name] for name in names)
    if remove > most:
        raise ValueError(f"cannot remove {remove} channels: the floors {floors} of widths {result} allow {most}")
    owner = torch.cat(
        [torch.full((int(alive[name].sum()),), i, dtype=torch.int64, device="cpu") for i, name in enumerate(names)]
    )
    values = torch.cat([scores[name][alive[name]] for name in names])
    left = remove
    for place in torch.argsort(values, stable=True).tolist():
        if not left:
            break
        name = names[int(owner[place])]
        if result[name] > floors[name]:
            result[name] -= 1
            left -= 1
    return _rounded(result, {n: int(alive[n].sum()) for n in names}, floors, steps) if steps else result


def _rounded(
    result: dict[str, int], present: dict[str, int], floors: dict[str, int], steps: dict[str, int]
) -> dict[str, int]:
    up = {name: min(present[name], -(-width // steps[name]) * steps[name]) for name, width in result.items()}
    excess = sum(up.values()) - sum(result.values())
    for name in sorted(result, key=lambda name: result[name] % steps[name]):
        down = max(result[name] // steps[name] * steps[name], floors[name])
        step = min(max(up[name] - down, 0), excess)
        up[name] -= step
        excess -= step
    for name in up:  # floors kept every group from its lower multiple: take what is left anywhere
        step = min(up[name] - floors[name], excess)
        up[name] -= step
        excess -= step
    return up


def lowest(scores: Tensor, alive: Tensor, keep: int) -> Tensor:
    """Numbers (int64) of the living channels of smallest score that go when `keep` stay."""
    places = alive.nonzero().squeeze(1)
    return places[torch.argsort(scores[places], stable=True)[: len(places) - keep]].sort().values
