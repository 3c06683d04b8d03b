"""Attention of which a mask hides much: what is not seen is not computed."""
