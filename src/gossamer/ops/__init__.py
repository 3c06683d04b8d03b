"""The ops on tensors and a Pattern: schema, dispatch by device, autograd. May import planner, pattern and kernels."""

from gossamer.ops.attention.masked import masked_attention
from gossamer.ops.attention.site import MaskSite
from gossamer.ops.attention.varlen import varlen_attention
from gossamer.ops.fan_in.product import fan_in_mm
from gossamer.ops.fan_in.rewire import fan_in_candidates, fan_in_indices, fan_in_rewire
from gossamer.ops.fan_in.step import fan_in_step
from gossamer.ops.fan_in.topk import fan_in_topk, merge_topk
from gossamer.ops.gemv import gated_mv, skip_mv, statistical_topk
from gossamer.ops.grouped import grouped_matmul
from gossamer.ops.matmul import matmul
from gossamer.ops.paged.append import page_append
from gossamer.ops.paged.attention import page_attention
from gossamer.ops.paged.choose import page_choose
from gossamer.ops.paged.pool import Batch, PagePool
from gossamer.ops.paged.scores import page_scores
from gossamer.ops.products import dds, dsd, sdd
from gossamer.ops.registration import Backend
from gossamer.ops.skipping.conv2d import conv2d
from gossamer.ops.skipping.linear import linear
from gossamer.ops.tiles import Transposed, detect, gather, scatter, transpose
from gossamer.renamed import keep_old_names

keep_old_names(
    __name__,
    {
        **dict.fromkeys(("dds", "dsd", "sdd"), "products"),
        **dict.fromkeys(("detect", "gather", "scatter", "transpose"), "tiles"),
        **dict.fromkeys(("gated_mv", "skip_mv", "statistical_topk"), "gemv"),
        "grouped_matmul": "grouped",
        "conv2d": "skipping.conv2d",
        "linear": "skipping.linear",
    },
)

__all__ = [
    "Backend",
    "Batch",
    "MaskSite",
    "PagePool",
    "Transposed",
    "conv2d",
    "dds",
    "detect",
    "dsd",
    "fan_in_candidates",
    "fan_in_indices",
    "fan_in_mm",
    "fan_in_rewire",
    "fan_in_step",
    "fan_in_topk",
    "gated_mv",
    "gather",
    "grouped_matmul",
    "linear",
    "masked_attention",
    "matmul",
    "merge_topk",
    "page_append",
    "page_attention",
    "page_choose",
    "page_scores",
    "scatter",
    "sdd",
    "skip_mv",
    "statistical_topk",
    "transpose",
    "varlen_attention",
]
