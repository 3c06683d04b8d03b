"""The ops as Triton kernels, for CUDA tensors (and CPU tensors under TRITON_INTERPRET=1)."""
