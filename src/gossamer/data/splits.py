"""A data set in memory: inputs and labels of a training and a test part."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Splits:
    """Inputs are float32 [n, channels, height, width] (or [n, features]), labels int64 [n] in 0..classes-1.

    Inputs are normalised: every channel of `train_x` has mean 0 and standard deviation 1.

    Attributes:
        digest: of what was read, before it was normalised, whose last bits may be a matter of the number of threads;
            empty where nobody says.
    """

    train_x: torch.Tensor
    train_y: torch.Tensor
    test_x: torch.Tensor
    test_y: torch.Tensor
    classes: int
    names: tuple[str, ...] = ()
    digest: str = ""

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one example, without the batch axis."""
        return tuple(self.train_x.shape[1:])

    @property
    def unseen(self) -> str | None:
        """Which classes no training example shows, in words; None where each has one."""
        counts = torch.bincount(self.train_y, minlength=self.classes)
        missing = (counts == 0).nonzero().flatten()
        if not len(missing):
            return None
        few = ", ".join(self.names[i] if self.names else str(i) for i in missing[:5].tolist())
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        tested = int(torch.isin(self.test_y, missing).sum())
        lost = f"; {tested} test examples are of such a class and cannot be told" if tested else ""
        return f"{len(missing)} of {self.classes} classes have no training example: {few}{more}{lost}"

    @property
    def chance(self) -> float:
        """The test accuracy of naming the most frequent class of the training part every time."""
        return float((self.test_y == self.train_y.bincount().argmax()).float().mean())


def split(labels: torch.Tensor, *, test_fraction: float, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Indices of a stratified split: every class gives the same share of its examples to the test part.

    A class keeps at least one training example; the same seed gives the same split on every machine.

    Args:
        labels: int64 [n].
        test_fraction: share of each class that is held out, in (0, 1).
        seed: of the shuffle.

    Returns:
        (train, test), int64 and ascending.

    Raises:
        ValueError: test_fraction is not in (0, 1), or the test part would be empty.
    """
    if not 0.0 < test_fraction < 1.0:
        raise ValueError(f"test_fraction is {test_fraction}; expected a number between 0 and 1")
    generator = torch.Generator().manual_seed(seed)
    train, test = [], []
    # Sorted once: as many passes as classes would take for ever where each example is its own.
    counts = labels.unique(return_counts=True)[1].tolist()
    for members in labels.argsort(stable=True).split(counts):
        members = members[torch.randperm(len(members), generator=generator, device="cpu")]
        held_out = min(round(test_fraction * len(members)), len(members) - 1)
        test.append(members[:held_out])
        train.append(members[held_out:])
    train_ids, test_ids = torch.cat(train).sort().values, torch.cat(test).sort().values
    if len(test_ids) == 0:
        raise ValueError(f"test_fraction is {test_fraction}, which leaves no test example of {len(labels)} examples")
    return train_ids, test_ids


def normalise(train_x: torch.Tensor, test_x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Shift and scale both parts, channel by channel, to mean 0 and standard deviation 1 of the training part."""
    axes = [axis for axis in range(train_x.dim()) if axis != 1]
    # A feature vector has no channel that shares statistics with its neighbours; one scale serves all features.
    if train_x.dim() == 2:
        axes = [0, 1]
    mean = train_x.mean(axes, keepdim=True)
    # A channel that never varies stays at zero instead of being divided by zero.
    deviation = train_x.std(axes, correction=0, keepdim=True)
    deviation = torch.where(deviation > 0, deviation, torch.ones_like(deviation))
    return (train_x - mean) / deviation, (test_x - mean) / deviation
