"""Modules on the verbs: parameters are numbers, buffers are structure. May import ops, planner, pattern and kernels."""

from gossamer.nn.block_sparse_attention import AttentionIndex, BlockSparseAttention, block_sparse_attention
from gossamer.nn.block_sparse_linear import BlockSparseLinear
from gossamer.nn.conv2d import Conv2d
from gossamer.nn.experts import Experts, balance_loss
from gossamer.nn.gated_feed_forward import GatedFeedForward, gated
from gossamer.nn.linear import Linear
from gossamer.nn.moves import moved
from gossamer.nn.relu_feed_forward import ReLUFeedForward
from gossamer.nn.skip_report import SkipReport
from gossamer.nn.skip_zeros import skip_zeros, unskip_zeros
from gossamer.nn.statistical_topk import StatisticalTopK
from gossamer.nn.threshold import apply_thresholds, threshold
from gossamer.nn.threshold_linear import ThresholdLinear
from gossamer.nn.threshold_report import ThresholdReport
from gossamer.nn.unpadded import Unpadded

__all__ = [
    "AttentionIndex",
    "BlockSparseAttention",
    "BlockSparseLinear",
    "Conv2d",
    "Experts",
    "GatedFeedForward",
    "Linear",
    "ReLUFeedForward",
    "SkipReport",
    "StatisticalTopK",
    "ThresholdLinear",
    "ThresholdReport",
    "Unpadded",
    "apply_thresholds",
    "balance_loss",
    "block_sparse_attention",
    "gated",
    "moved",
    "skip_zeros",
    "threshold",
    "unskip_zeros",
]
