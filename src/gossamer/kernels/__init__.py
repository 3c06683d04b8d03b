"""Numbers: the same ops three times, with the same names and signatures, on raw tensors.

`reference` is the oracle (plain PyTorch, any device); `cpu` calls the C++ kernels; `triton` holds the GPU kernels.
May import torch and `gossamer._native` only; nothing here knows what a Pattern is.
"""
