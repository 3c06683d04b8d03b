"""Convolutions and linears that skip zeros: docs/convolutions-measured.md; for decoding, docs/activations.md."""
