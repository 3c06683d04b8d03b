"""Finding the nonzero tiles of a dense tensor: the measured rows of docs/native.md."""
