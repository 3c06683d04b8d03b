"""Attention over pages: which of them a step reads, how, and how far the result may be off."""
