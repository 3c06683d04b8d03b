"""Sparse matrix products and the choice between them: the measured rows of docs/products.md and docs/planner.md."""
