"""Numbers as people read them."""

from __future__ import annotations

import math
from collections.abc import Callable

MISSING = "\N{EN DASH}"
_PREFIXES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def short(value: float | None, unit: str = "") -> str:
    """Three significant digits with a decimal prefix.

    >>> from gossamer.report.quantity import short
    >>> short(371402), short(1489224, "B"), short(1.2e-4, "s"), short(None)
    ('371 k', '1.49 MB', '120 µs', '–')
    """
    if value is None or not math.isfinite(value):
        return MISSING
    value = float(f"{value:.3g}")
    scale, prefix = next(((s, p) for s, p in _PREFIXES if abs(value) >= s), (1.0, ""))
    if unit == "s" and 0 < abs(value) < 1:
        scale, prefix = (1e-3, "m") if abs(value) >= 1e-3 else (1e-6, "µ")
    scaled = value / scale
    digits = 0 if scaled == int(scaled) and not prefix else max(0, 2 - math.floor(math.log10(abs(scaled) or 1)))
    suffix = prefix + unit
    return f"{scaled:.{digits}f}" + (f" {suffix}" if suffix else "")


def brief(value: float, unit: str = "") -> str:
    """`short` without digits that are zero anyway, for the marks of an axis.

    >>> from gossamer.report.quantity import brief
    >>> brief(0.002, "s"), brief(0.0025, "s"), brief(0.0, "s"), brief(400)
    ('2 ms', '2.5 ms', '0', '400')
    """
    number, space, suffix = short(value, unit).partition(" ")
    if "." in number:
        number = number.rstrip("0").rstrip(".")
    return "0" if value == 0 else number + space + suffix


def percent(value: float | None, digits: int = 1) -> str:
    """A share of one as a percentage.

    >>> from gossamer.report.quantity import percent
    >>> percent(0.98612)
    '98.6 %'
    """
    if value is None or not math.isfinite(value):
        return MISSING
    return f"{100 * value:.{digits}f} %"


def times(value: float | None) -> str:
    """A ratio.

    >>> from gossamer.report.quantity import times
    >>> times(2.304)
    '2.30×'
    """
    return MISSING if value is None or not math.isfinite(value) else f"{value:.2f}\N{MULTIPLICATION SIGN}"


def count(value: int) -> str:
    """A whole number in full.

    >>> from gossamer.report.quantity import count
    >>> count(103421376)
    '103,421,376'
    """
    return f"{value:,}"


def marks(
    low: float, high: float, write: Callable[[float], str], *, about: int = 4, whole: bool = False
) -> list[tuple[float, str]]:
    """Round places between `low` and `high` with their texts, no two of which are the same: fewer places otherwise.

    >>> from gossamer.report.quantity import marks, percent
    >>> marks(0.1003, 0.1016, percent)
    [(0.101, '10.1 %')]
    """
    found: list[tuple[float, str]] = []
    for most in range(about, 0, -1):
        places = [value for value in ticks(low, high, about=most) if not whole or value == int(value)]
        found = [(value, write(value)) for value in places]
        if len({text for _, text in found}) == len(found):
            return found
    return found[:1]


def ticks(low: float, high: float, *, about: int = 4) -> list[float]:
    """Round places between `low` and `high`: multiples of 1, 2 or 5 times a power of ten.

    >>> from gossamer.report.quantity import ticks
    >>> ticks(0, 440)
    [0.0, 100.0, 200.0, 300.0, 400.0]
    """
    if not high > low:
        return [low]
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = power * min((1, 2, 5, 10), key=lambda m: abs(m * power - rough))
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]
