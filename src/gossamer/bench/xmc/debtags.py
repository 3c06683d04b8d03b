"""Quality on Debian's packages, from the lists that apt has fetched: their descriptions, and their tags."""

from __future__ import annotations

from collections.abc import Iterator

from gossamer.bench.section import Row, Section, Settings
from gossamer.bench.xmc import quality
from gossamer.xmc.data import DataSet, Part, debtags

EPOCHS, CLUSTERS, WIDTH, FAN_IN = 4, 16, 512, 64
QUICK = 300  # examples


def rows(settings: Settings) -> Iterator[Row]:
    """Ours, other heads on the same words, and other programs; a row that says why, where there are no lists."""
    try:
        sets = debtags()
    except (FileNotFoundError, RuntimeError) as error:
        yield {"data": "debtags", "model": "none", "runs": 0, "absent": str(error)}
        return
    models = quality.compared(FAN_IN, WIDTH, {"epochs": EPOCHS}, clusters=CLUSTERS)
    if settings.quick:
        sets = _first(sets)
        models = quality.compared(8, 16, {"epochs": 1}, clusters=2, features=512)
    yield from quality.rows("debtags", lambda _: sets, models, settings, programs=True)


def _first(sets: DataSet) -> DataSet:
    train, test = (
        Part(part.labels.slice(0, QUICK), None, None if part.texts is None else part.texts[:QUICK])
        for part in (sets.train, sets.test)
    )
    return DataSet(train, test, sets.label_texts, sets.name, sets.facts)


SECTION = Section(rows, quality.TABLE, on_gpu=False)
