"""How many weights each layer keeps: uniform, Erdos-Renyi (ER), Erdos-Renyi kernel (ERK), or a table.

All of them are one rule: hand out `total` weights in proportion to a share per layer, no layer above its size.

    uniform  share_l = n_l
    ER       share_l = n_l * (out + in) / (out * in)                    Mocanu et al., 2018
    ERK      share_l = n_l * sum(shape) / prod(shape) = sum(shape)      Evci et al., 2020, appendix

A layer that would exceed its size is kept dense and the rest is shared again; the real-valued result is rounded by
largest remainders so that the counts add up to exactly round(density * N).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

DISTRIBUTIONS = ("uniform", "er", "erk")


def shares(shapes: Sequence[Sequence[int]], kind: str) -> list[float]:
    """Relative number of weights per layer for layers of these shapes (out, in, *kernel).

    Raises:
        ValueError: unknown `kind`.

    Example:
        >>> shares([(4, 8), (16, 8, 3, 3)], "erk")
        [12.0, 30.0]
    """
    if kind == "uniform":
        return [float(math.prod(shape)) for shape in shapes]
    if kind == "er":
        return [math.prod(s) * (s[0] + s[1]) / (s[0] * s[1]) for s in shapes]
    if kind == "erk":
        return [float(sum(shape)) for shape in shapes]
    raise ValueError(f"distribution must be one of {DISTRIBUTIONS} or a dict of globs, got {kind!r}")


def fill(total: float, share: Sequence[float], caps: Sequence[int]) -> list[float]:
    """Real-valued amounts proportional to `share`, none above its cap, that add up to `total`.

    Layers that reach their cap are set to it and the remainder is shared again among the others (the "dense set" of
    ERK). Layers of share zero get something only when every other layer is full.

    Raises:
        ValueError: total < 0 or total > sum(caps).

    Example:
        >>> fill(10, [1.0, 1.0, 2.0], [2, 100, 100])
        [2.0, 2.6666666666666665, 5.333333333333333]
    """
    if not 0 <= total <= sum(caps):
        raise ValueError(f"cannot place {total} weights in layers that hold {sum(caps)}")
    amounts = [0.0] * len(caps)
    left = float(total)
    # layers of share zero come second, and then share by size
    for weight in (share, [cap if s == 0 else 0 for s, cap in zip(share, caps, strict=True)]):
        free = [i for i, cap in enumerate(caps) if cap and weight[i] > 0]
        while free and left > 0:
            scale = left / sum(weight[i] for i in free)
            full = [i for i in free if scale * weight[i] >= caps[i]]
            for i in full or free:
                amounts[i] = float(caps[i]) if full else scale * weight[i]
            left = left - sum(caps[i] for i in full) if full else 0.0
            free = [i for i in free if i not in full]
    return amounts


def allocate(total: int, share: Sequence[float], caps: Sequence[int]) -> list[int]:
    """Whole numbers proportional to `share`, none above its cap, adding up to exactly `total` (largest remainder).

    Args:
        total: how many weights to place.
        share: a non-negative number per layer.
        caps: how many weights each layer can hold.

    Raises:
        ValueError: total outside [0, sum(caps)], or a share that is negative or not finite.

    Example:
        >>> allocate(10, [1.0, 1.0, 1.0], [100, 100, 2])
        [4, 4, 2]
    """
    if any(not math.isfinite(s) or s < 0 for s in share):
        raise ValueError(f"shares must be finite and >= 0, got {list(share)}")
    amounts = fill(total, share, caps)
    counts = [min(math.floor(amount), cap) for amount, cap in zip(amounts, caps, strict=True)]
    order = sorted(range(len(caps)), key=lambda i: (counts[i] - amounts[i], i))
    missing = total - sum(counts)
    while missing > 0:
        for i in order:
            if missing and counts[i] < caps[i]:
                counts[i] += 1
                missing -= 1
    while missing < 0:  # only when floats overshoot: 0.1 * n summed over layers can exceed the total by an ulp
        for i in reversed(order):
            if missing and counts[i] > 0:
                counts[i] -= 1
                missing += 1
    return counts


def budgets(
    names: Sequence[str],
    shapes: Sequence[Sequence[int]],
    units: Sequence[int],
    *,
    density: float,
    distribution: str | Mapping[str, float],
    tiles: Sequence[tuple[int, int]] | None = None,
) -> list[int]:
    """How many units (weights, or tiles) each layer keeps; the sum is exactly round(density * sum(units)).

    Args:
        names: layer names, matched against the globs of a table.
        shapes: weight shapes (out, in, *kernel).
        units: number of weights, or of tiles, per layer.
        density: kept fraction over all layers, in (0, 1].
        distribution: "uniform", "er", "erk", or {glob: density} fixing some layers; the first glob that matches a name
            counts, the other layers share what is left by ERK.
        tiles: what a unit is in each layer. Layers with units of different sizes are budgeted apart, each kind at
            `density`.

    Raises:
        ValueError: density outside (0, 1] or so small that nothing is kept; a table that matches nothing, holds a
            density outside [0, 1], or asks for more or less than the budget allows.

    Example:
        >>> budgets(["conv", "fc"], [(8, 3, 3, 3), (10, 8)], [216, 80], density=0.1, distribution={"conv": 0.05})
        [11, 19]
    """
    if tiles is not None and len(set(tiles)) > 1:
        counts = [0] * len(names)
        for kind in dict.fromkeys(tiles):
            at = [i for i, tile in enumerate(tiles) if tile == kind]
            mine = [names[i] for i in at]
            shape, size, rule = [shapes[i] for i in at], [units[i] for i in at], _of(distribution, mine, names)
            for i, count in zip(at, budgets(mine, shape, size, density=density, distribution=rule), strict=True):
                counts[i] = count
        return counts
    if not 0.0 < density <= 1.0:
        raise ValueError(f"density must be in (0, 1], got {density}")
    total = round(density * sum(units))
    if total == 0:
        raise ValueError(f"density={density} of {sum(units)} weights rounds to 0: nothing would be kept")
    if not isinstance(distribution, Mapping):
        return allocate(total, _scaled(shares(shapes, distribution), shapes, units), units)
    fixed: dict[int, int] = {}
    for glob, value in distribution.items():
        if not 0.0 <= value <= 1.0:
            raise ValueError(f"distribution[{glob!r}] must be in [0, 1], got {value}")
        hits = [i for i, name in enumerate(names) if fnmatchcase(name, glob)]
        if not hits:
            raise ValueError(f"distribution[{glob!r}] matches no layer; layers are {list(names)}")
        for i in hits:
            fixed.setdefault(i, round(value * units[i]))
    rest = [i for i in range(len(names)) if i not in fixed]
    left = total - sum(fixed.values())
    if not 0 <= left <= sum(units[i] for i in rest):
        raise ValueError(
            f"density={density} keeps {total} weights, but the table fixes {sum(fixed.values())} and the "
            f"{len(rest)} remaining layers hold {sum(units[i] for i in rest)}: change the table or density"
        )
    share = _scaled(shares([shapes[i] for i in rest], "erk"), [shapes[i] for i in rest], [units[i] for i in rest])
    for i, count in zip(rest, allocate(left, share, [units[i] for i in rest]), strict=True):
        fixed[i] = count
    return [fixed[i] for i in range(len(names))]


def _scaled(share: Sequence[float], shapes: Sequence[Sequence[int]], units: Sequence[int]) -> list[float]:
    """Shares counted in units: with tiles, a layer of n weights has n / tile area of them."""
    return [s * u / math.prod(shape) for s, shape, u in zip(share, shapes, units, strict=True)]


def _of(
    distribution: str | Mapping[str, float], mine: Sequence[str], names: Sequence[str]
) -> str | Mapping[str, float]:
    """The entries of a table that concern some of the layers; a glob that matches none at all stays, to be refused."""
    if not isinstance(distribution, Mapping):
        return distribution
    hits = {glob: [name for name in names if fnmatchcase(name, glob)] for glob in distribution}
    return {glob: d for glob, d in distribution.items() if not hits[glob] or set(hits[glob]) & set(mine)}
