"""Padding: found, left out once around a stack of blocks, and put back."""
