"""Classifiers over many labels: steps and memory of the head, beside dense ones."""
