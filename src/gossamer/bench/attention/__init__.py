"""Attention over long contexts: decoding and prefill of one layer, over the best of torch."""
