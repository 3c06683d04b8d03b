"""A cost curve: seconds against the fraction of tiles that are occupied, never falling.

Measured times wobble; a kernel does not get faster by doing more. The pool-adjacent-violators algorithm gives the
nearest never-falling sequence in least squares; between the points the curve is linear, beyond them constant.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass


def isotonic(values: Sequence[float], weights: Sequence[float] | None = None) -> list[float]:
    """The never-falling sequence nearest to `values` in weighted least squares.

    >>> isotonic([1.0, 3.0, 2.0, 4.0])
    [1.0, 2.5, 2.5, 4.0]
    """
    weights = [1.0] * len(values) if weights is None else list(weights)
    if len(weights) != len(values) or not all(weight > 0 for weight in weights):
        raise ValueError(f"weights must be {len(values)} positive numbers, got {weights}")
    blocks: list[tuple[float, float, int]] = []  # mean, weight, length
    for value, weight in zip(values, weights, strict=True):
        mean, length = float(value), 1
        while blocks and blocks[-1][0] > mean:
            before, heavy, many = blocks.pop()
            mean = (before * heavy + mean * weight) / (heavy + weight)
            weight, length = heavy + weight, many + length
        blocks.append((mean, weight, length))
    return [mean for mean, _, length in blocks for _ in range(length)]


@dataclass(frozen=True)
class Curve:
    """`densities` rise strictly in [0, 1]; `seconds` are positive and never fall.

    >>> curve = Curve.fit([1.0, 0.0], [3.0, 1.0])
    >>> curve(0.5), curve.reaches(2.5), curve.reaches(9.0)
    (2.0, 0.75, 1.0)
    """

    densities: tuple[float, ...]
    seconds: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.densities or len(self.densities) != len(self.seconds):
            raise ValueError(f"a curve needs as many densities as seconds, got {self.densities} and {self.seconds}")
        rising = all(a < b for a, b in zip(self.densities, self.densities[1:], strict=False))
        if not (rising and self.densities[0] >= 0.0 and self.densities[-1] <= 1.0):
            raise ValueError(f"densities must rise in [0, 1], got {self.densities}")
        never_falls = all(a <= b for a, b in zip(self.seconds, self.seconds[1:], strict=False))
        if not (never_falls and self.seconds[0] > 0.0 and math.isfinite(self.seconds[-1])):
            raise ValueError(f"seconds must be positive, finite and never fall, got {self.seconds}")

    @classmethod
    def fit(cls, densities: Sequence[float], seconds: Sequence[float]) -> Curve:
        """The isotonic fit of measurements in any order."""
        pairs = sorted(zip(densities, seconds, strict=True))
        return cls(tuple(density for density, _ in pairs), tuple(isotonic([time for _, time in pairs])))

    def __call__(self, density: float) -> float:
        return _interpolate(self.densities, self.seconds, density)

    def reaches(self, seconds: float) -> float:
        """The largest density in [0, 1] whose cost is at most `seconds`; 0 if there is none."""
        if self(1.0) <= seconds:
            return 1.0
        if self(0.0) > seconds:
            return 0.0
        # The cost is strictly above `seconds` from this point on, so the segment before it rises through it.
        after = next(i for i, time in enumerate(self.seconds) if time > seconds)
        low, high = self.seconds[after - 1], self.seconds[after]
        share = (seconds - low) / (high - low)
        return self.densities[after - 1] + share * (self.densities[after] - self.densities[after - 1])


def _interpolate(xs: tuple[float, ...], ys: tuple[float, ...], x: float) -> float:
    after = bisect_right(xs, x)
    if after == 0:
        return ys[0]
    if after == len(xs):
        return ys[-1]
    share = (x - xs[after - 1]) / (xs[after] - xs[after - 1])
    return ys[after - 1] + share * (ys[after] - ys[after - 1])
