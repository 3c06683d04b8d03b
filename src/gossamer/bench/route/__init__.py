"""Tokens that choose their layers: what a skipped layer saves, what choosing costs, and what it does to a model."""
