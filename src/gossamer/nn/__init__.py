"""Modules on the ops: parameters are numbers, buffers are structure. May import ops, planner, pattern and kernels."""

from gossamer.nn.block_sparse import (
    AttentionIndex,
    BlockSparseAttention,
    BlockSparseLinear,
    block_sparse_attention,
    remapped,
)
from gossamer.nn.experts import Experts, balance_loss, convert_experts
from gossamer.nn.fan_in import FanInLinear
from gossamer.nn.relu_feed_forward import ReLUFeedForward
from gossamer.nn.rewirable import Rewirable
from gossamer.nn.skip import Conv2d, Linear, SkipReport, skip_zeros, unskip_zeros
from gossamer.nn.statistical_topk import StatisticalTopK
from gossamer.nn.threshold import (
    GatedFeedForward,
    ThresholdLinear,
    ThresholdReport,
    apply_thresholds,
    gated,
    remove_thresholds,
    restore_thresholds,
    threshold,
)
from gossamer.nn.unpadded import Unpadded
from gossamer.renamed import keep_old_names, old_attributes

keep_old_names(
    __name__,
    {
        "block_sparse_attention": "block_sparse.attention",
        "block_sparse_linear": "block_sparse.linear",
        "conv2d": "skip.conv2d",
        "gated_feed_forward": "threshold.gated_feed_forward",
        "linear": "skip.linear",
        "magnitudes": "threshold.magnitudes",
        "memory_order": "skip.memory_order",
        "moves": "block_sparse.slot_remapping",
        "skip_report": "skip.report",
        "skip_zeros": "skip.conversion",
        "storage": "block_sparse.quantization",
        "tap": "block_sparse.gradient_capture",
        "threshold_allocation": "threshold.allocation",
        "threshold_linear": "threshold.linear",
        "threshold_report": "threshold.report",
        "threshold_sites": "threshold.places",
        "thresholded": "threshold.thresholded",
        "tiled": "block_sparse.tiled",
    },
    {
        "Tap": "GradientCapture",
        "dequantised": "dequantize",
        "move_": "remap_",
        "moved": "remapped",
        "quantised": "quantize",
        "sources": "slot_sources",
    },
)
__getattr__ = old_attributes(__name__, {"moved": "remapped"})

__all__ = [
    "AttentionIndex",
    "BlockSparseAttention",
    "BlockSparseLinear",
    "Conv2d",
    "Experts",
    "FanInLinear",
    "GatedFeedForward",
    "Linear",
    "ReLUFeedForward",
    "Rewirable",
    "SkipReport",
    "StatisticalTopK",
    "ThresholdLinear",
    "ThresholdReport",
    "Unpadded",
    "apply_thresholds",
    "balance_loss",
    "block_sparse_attention",
    "convert_experts",
    "gated",
    "remapped",
    "remove_thresholds",
    "restore_thresholds",
    "skip_zeros",
    "threshold",
    "unskip_zeros",
]
