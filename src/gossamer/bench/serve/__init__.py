"""Servers of language models over HTTP: how long clients wait, and how much all of them get."""
