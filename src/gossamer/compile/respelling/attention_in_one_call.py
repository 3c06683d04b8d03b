"""nn.MultiheadAttention and nn.TransformerEncoderLayer, which reach a graph as one call each, in their parts."""

from __future__ import annotations

import inspect
import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch.fx import Graph, Node

from gossamer.compile.respelling.writer import Writer

_LAYER = (
    "src", "embed_dim", "num_heads", "qkv_weight", "qkv_bias", "proj_weight", "proj_bias", "use_gelu", "norm_first",
    "eps",
    "norm_weight_1", "norm_bias_1", "norm_weight_2", "norm_bias_2", "ffn_weight_1", "ffn_bias_1", "ffn_weight_2",
    "ffn_bias_2", "mask", "mask_type",
)  # fmt: skip


def in_one_call(graph: Graph) -> None:
    for node in list(graph.nodes):
        if node.op != "call_function":
            continue
        if node.target is F.multi_head_attention_forward:
            _module(node)
        elif node.target is torch._transformer_encoder_layer_fwd:
            _layer(node)


def _module(node: Node) -> None:
    """Self-attention [S, B, E] whose weights nobody asks for."""
    bound = inspect.signature(F.multi_head_attention_forward).bind(*node.args, **node.kwargs)
    bound.apply_defaults()
    a = bound.arguments
    x = a["query"]
    plain = (
        a["key"] is x and a["value"] is x and x.meta["example_value"].dim() == 3
        and all(a[name] is None for name in ("bias_k", "bias_v", "static_k", "static_v", "attn_mask"))
        and not any(a[name] for name in ("add_zero_attn", "need_weights", "use_separate_proj_weight", "is_causal"))
        and a["key_padding_mask"] is not None
        and all(user.target is operator.getitem and user.args[1] == 0 for user in node.users)
    )  # fmt: skip
    if not plain:
        return
    write = Writer(node)
    dropout = a["dropout_p"] if a["training"] else 0.0
    qkv = write.call(F.linear, x, a["in_proj_weight"], a["in_proj_bias"])
    mask = write.call(operator.getitem, a["key_padding_mask"], (slice(None), None, None))
    if mask.meta["example_value"].dtype == torch.bool:
        mask = write.call(torch.logical_not, mask)
    q, k, v = (write.method("permute", each, 1, 2, 0, 3) for each in _heads(write, qkv, a["num_heads"]))
    y = write.call(F.scaled_dot_product_attention, q, k, v, attn_mask=mask, dropout_p=dropout)
    y = write.method("flatten", write.method("permute", y, 2, 0, 1, 3), 2)
    y = write.call(F.linear, y, a["out_proj_weight"], a["out_proj_bias"])
    for user in list(node.users):
        user.replace_all_uses_with(y)


def _heads(write: Writer, qkv: Node, heads: int) -> list[Node]:
    """[., ., 3 E] -> three of [., ., heads, width]."""
    chunks = write.method("chunk", qkv, 3, -1)
    width = chunks.meta["example_value"][0].shape[-1] // heads
    pieces = [write.call(operator.getitem, chunks, at) for at in range(3)]
    return [write.method("unflatten", piece, 2, (heads, width)) for piece in pieces]


def _layer(node: Node) -> None:
    """The inference path of nn.TransformerEncoderLayer, [B, S, E], with a mask of keys."""
    a: dict[str, Any] = dict(zip(_LAYER, node.args, strict=False)) | dict(node.kwargs)
    x, mask = a["src"], a.get("mask")
    if mask is None or a.get("mask_type") != 1 or x.meta["example_value"].dim() != 3:
        return
    write = Writer(node)
    hidden = write.method("to", mask, torch.bool)
    seen = write.call(torch.logical_not, write.call(operator.getitem, hidden, (slice(None), None, None)))

    def norm(x: Node, number: int) -> Node:
        return write.call(
            F.layer_norm, x, (a["embed_dim"],), a[f"norm_weight_{number}"], a[f"norm_bias_{number}"], a["eps"]
        )

    def attend(x: Node) -> Node:
        qkv = write.call(F.linear, x, a["qkv_weight"], a["qkv_bias"])
        q, k, v = (write.method("transpose", each, 1, 2) for each in _heads(write, qkv, a["num_heads"]))
        y = write.call(F.scaled_dot_product_attention, q, k, v, attn_mask=seen)
        y = write.method("flatten", write.method("transpose", y, 1, 2), 2)
        return write.call(F.linear, y, a["proj_weight"], a["proj_bias"])

    def feed_forward(x: Node) -> Node:
        y = write.call(F.linear, x, a["ffn_weight_1"], a["ffn_bias_1"])
        y = write.call(F.gelu if a["use_gelu"] else F.relu, y)
        return write.call(F.linear, y, a["ffn_weight_2"], a["ffn_bias_2"])

    if a["norm_first"]:
        x = write.call(operator.add, x, attend(norm(x, 1)))
        x = write.call(operator.add, x, feed_forward(norm(x, 2)))
    else:
        x = norm(write.call(operator.add, x, attend(x)), 1)
        x = norm(write.call(operator.add, x, feed_forward(x)), 2)
    node.replace_all_uses_with(x)
