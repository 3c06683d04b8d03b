"""Heads: one interface, and what they may consist of."""
