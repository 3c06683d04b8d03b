"""Mixtures of experts: the implementation for transformers, and models that loop over their experts in Python."""
