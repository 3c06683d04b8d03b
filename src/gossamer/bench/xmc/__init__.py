"""Classifiers over many labels: steps, memory and quality, beside dense ones."""
