"""Mini-batches whose order depends on (seed, epoch) alone, so that a resumed run sees what the whole run saw."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch


def steps_per_epoch(examples: int, batch_size: int) -> int:
    """Full batches in one epoch; the examples left over join another epoch's batches.

    >>> import gossamer as gs
    >>> gs.data.steps_per_epoch(1437, 64)
    22
    """
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; expected at least 1")
    if examples < batch_size:
        raise ValueError(f"batch_size is {batch_size}, but there are only {examples} training examples")
    return examples // batch_size


def batches(
    x: torch.Tensor,
    y: torch.Tensor,
    *,
    batch_size: int,
    seed: int,
    epoch: int,
    start: int = 0,
    rank: int = 0,
    world: int = 1,
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """The batches of one epoch, in an order drawn from (seed, epoch).

    Args:
        x: inputs [n, ...].
        y: labels [n].
        batch_size: examples of one batch over all ranks; a multiple of `world`.
        seed, epoch: what the order depends on.
        start: batches to leave out at the beginning (a run that goes on in the middle of an epoch).
        rank, world: this process takes every `world`-th example of each batch, beginning with the `rank`-th, so that
            the batches of all ranks together are the batches of one process.

    Raises:
        ValueError: batch_size is no multiple of world, or larger than n.

    >>> import torch, gossamer as gs
    >>> x = torch.arange(5)
    >>> whole = list(gs.data.batches(x, x, batch_size=2, seed=0, epoch=3))
    >>> later = list(gs.data.batches(x, x, batch_size=2, seed=0, epoch=3, start=1))
    >>> len(whole), torch.equal(whole[1][0], later[0][0])
    (2, True)
    """
    if batch_size % world:
        raise ValueError(f"batch_size is {batch_size}; expected a multiple of the {world} processes")
    count = steps_per_epoch(len(x), batch_size)
    # numpy hashes the pair; torch's CPU generator would use the low 32 bits of any one number made of it.
    order = torch.from_numpy(np.random.default_rng((seed, epoch)).permutation(len(x)))
    for i in range(start, count):
        mine = order[i * batch_size : (i + 1) * batch_size][rank::world].to(x.device)
        yield x[mine], y[mine]
