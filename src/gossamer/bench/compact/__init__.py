"""Train sparse, shrink, run: the measured rows behind docs/compaction.md and docs/training.md."""
