"""Train sparse, shrink, run: the measured rows behind docs/compaction.md and docs/training.md."""

from gossamer.bench.compact import chosen, digits, overhead, shrinking, throughput

SECTIONS = {
    "digits": digits.rows,
    "scoring": chosen.scoring,
    "trained": chosen.trained,
    "throughput": throughput.rows,
    "refusal": throughput.refusal_rows,
    "overhead": overhead.rows,
    "shrinking": shrinking.rows,
}
