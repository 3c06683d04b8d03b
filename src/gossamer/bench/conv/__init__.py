"""Convolutions and linears that skip run-time zeros: the measured rows behind docs/convolutions.md
and, for decoding, docs/activations.md."""

from gossamer.bench.conv import decode, gemv, kernels, linear, quality

SECTIONS = {
    "kernels": kernels.rows,
    "linear": linear.rows,
    "gemv": gemv.rows,
    "decode": decode.rows,
    "quality": quality.rows,
}
