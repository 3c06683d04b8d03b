"""Softmax attention that leaves out what nobody sees: padding between packed texts, and blocks of a mask."""
