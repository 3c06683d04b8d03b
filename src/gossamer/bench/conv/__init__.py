"""Convolutions and linears that skip run-time zeros: the measured rows behind docs/convolutions.md
and, for decoding, docs/activations.md."""

from gossamer.bench.conv import auto, decode, gemv, kernels, linear, networks, quality, training, weights

SECTIONS = {
    "kernels": kernels.rows,
    "linear": linear.rows,
    "weights": weights.rows,
    "auto": auto.rows,
    "networks": networks.rows,
    "training": training.rows,
    "gemv": gemv.rows,
    "decode": decode.rows,
    "quality": quality.rows,
}

ON_GPU = ("gemv",)  # the other sections measure kernels that only a CPU has
