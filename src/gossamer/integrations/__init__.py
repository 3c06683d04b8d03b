"""Bridges to what people already run: torchrun, TensorBoard, Lightning and transformers' Trainer.

Each bridge imports its package when it is used. May import everything below the benchmarks.
"""
