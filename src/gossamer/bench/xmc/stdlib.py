"""Quality on Python's own library, which is on every machine: its functions' texts, and the names that they use."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

from gossamer.bench.section import Row, Section, Settings
from gossamer.bench.xmc import quality
from gossamer.xmc.data import stdlib

EPOCHS, CLUSTERS, WIDTH, FAN_IN = 4, 256, 512, 64


def rows(settings: Settings) -> Iterator[Row]:
    """Ours, other heads on the same words, and other programs; the quick one reads one package of the library."""
    if settings.quick:
        sets = stdlib(Path(asyncio.__file__).parent)
        models = quality.compared(8, 16, {"epochs": 1}, clusters=2, features=512)
    else:
        sets = stdlib()
        models = quality.compared(FAN_IN, WIDTH, {"epochs": EPOCHS}, clusters=CLUSTERS)
    yield from quality.rows("stdlib", lambda _: sets, models, settings, programs=True)


SECTION = Section(rows, quality.TABLE, on_gpu=False)
