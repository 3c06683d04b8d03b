"""Convolutions and linears that skip run-time zeros: the measured rows behind docs/convolutions.md."""

from gossamer.bench.conv import kernels, linear

SECTIONS = {
    "kernels": kernels.rows,
    "linear": linear.rows,
}
