"""Attention over long contexts: decoding and prefill of one layer, whole models, many requests, and their quality."""
