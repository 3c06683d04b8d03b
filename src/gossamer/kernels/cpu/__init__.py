"""The ops on CPU tensors: check, allocate, call C++ (`csrc/`), which picks AVX-512, AVX2 or scalar code once."""
