"""Routes that are known beforehand, taken by a router that is asked as any other: its time is in what is measured."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from gossamer.routing.policies.jumps import Jumps

CERTAIN = 50.0


def spaced(units: int, share: float) -> list[int]:
    """Units so that `share` of them run, the first and the last among them, at even distances.

    >>> spaced(10, 0.5)
    [0, 2, 4, 7, 9]
    """
    count = max(2, round(units * share))
    return sorted({round(at * (units - 1) / (count - 1)) for at in range(count)})


def along(route: Sequence[int], units: int, width: int, joint: bool = False) -> Jumps:
    """A policy whose tokens run the units of a route."""
    policy = Jumps(units, width, joint=joint).eval()
    assert policy.router is not None
    with torch.no_grad():
        prior = policy.router.prior.zero_()
        for last, following in zip([0, *(unit + 1 for unit in route)], [*route, units], strict=True):
            prior[last, following] = CERTAIN
    return policy
