"""Convolutions and linears that skip zeros: docs/convolutions.md; for decoding, docs/activations.md."""
