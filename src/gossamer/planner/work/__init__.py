"""Who multiplies which tiles: partitions of a pattern that stays, buckets for patterns that change."""
