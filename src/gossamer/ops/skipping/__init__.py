"""Layers that skip the zeros of an operand inside their kernels: conv2d and linear, forward and both backwards."""
