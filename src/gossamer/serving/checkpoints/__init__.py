"""Models from disk: names, safetensors and GGUF files, and the decoders that they become."""
