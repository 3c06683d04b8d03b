"""Train sparse, shrink, run: the measured rows behind docs/compaction.md and docs/training.md."""

from gossamer.bench.compact.digits import digits
from gossamer.bench.compact.overhead import overhead
from gossamer.bench.compact.shrinking import shrinking
from gossamer.bench.compact.throughput import refusal, throughput

SECTIONS = {
    "digits": digits,
    "throughput": throughput,
    "refusal": refusal,
    "overhead": overhead,
    "shrinking": shrinking,
}
