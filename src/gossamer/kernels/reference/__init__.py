"""The oracle: every op in a few lines of plain torch, on any device."""
