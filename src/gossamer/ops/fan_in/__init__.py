"""Matrices each of whose rows has the same number of elements, side by side: products with them, and classifiers."""
