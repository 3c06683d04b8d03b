"""How each operator turns known operands into known results (the table behind values.Interpreter)."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from .rules.table import factors, op_name, shape_of
from .values import Interpreter, Value, compressed, constant, constants_of, first_output, grown, reaches

CONVOLUTIONS = (
    "conv1d", "conv2d", "conv3d", "convolution", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"
)  # fmt: skip


def product(a: Value, b: Value) -> Value:
    """a [..., m, k] @ b [..., k, n]: known where every term is zero or has two known factors."""
    a_const, b_const = a.known & a.maybe, b.known & b.maybe
    dtype = torch.promote_types(a.value.dtype, b.value.dtype)
    if not bool(a_const.any()) or not bool(b_const.any()):  # nothing but zeros: no sums to form
        known = ~reaches(a.maybe, b.maybe)
        return Value(torch.zeros((1,) * known.dim(), dtype=dtype, device="cpu"), known)
    inner = max(a.value.shape[-1], a.known.shape[-1], b.value.shape[-2], b.known.shape[-2])
    maybe = torch.matmul(grown(a.maybe, -1, inner).float(), grown(b.maybe, -2, inner).float())
    const = torch.matmul(grown(a_const, -1, inner).float(), grown(b_const, -2, inner).float())
    known = maybe - const < 0.5
    value = torch.matmul(grown(a.value, -1, inner).to(dtype), grown(b.value, -2, inner).to(dtype))
    return Value.where(known, value)


def added(a: Value, b: Value) -> Value:
    return Value.where(a.known & b.known, a.value + b.value)


@constants_of("linear")
def linear(run: Interpreter, node: fx.Node, args: dict[str, Any]) -> Value | None:
    x, w = run.of(args["input"]), run.of(args["weight"])
    if len(shape_of(args["weight"])) != 2:
        return None
    out = product(x, Value(w.value.mT, w.known.mT))
    return added(out, run.of(args["bias"])) if args.get("bias") is not None else out


@constants_of("matmul", "bmm", "mm", "mv", "dot")
def matmul(run: Interpreter, node: fx.Node, args: dict[str, Any]) -> Value:
    """A vector is a matrix of one row on the left, of one column on the right."""
    left, right = run.of(node.all_input_nodes[0]), run.of(node.all_input_nodes[-1])
    row, column = left.value.dim() == 1, right.value.dim() == 1
    a = Value(left.value[None], left.known[None]) if row else left
    b = Value(right.value[:, None], right.known[:, None]) if column else right
    out = product(a, b)
    value, known = out.value, out.known
    for axis, there in ((-1, column), (-2 + column, row)):
        value, known = (value.squeeze(axis), known.squeeze(axis)) if there else (value, known)
    return Value(value, known)


@constants_of("addmm", "baddbmm")
def addmm(run: Interpreter, node: fx.Node, args: dict[str, Any]) -> Value | None:
    if args.get("beta", 1) != 1 or args.get("alpha", 1) != 1:
        return None
    return added(product(*map(run.of, factors(args))), run.of(args["self"]))


def conv_terms(weight: Tensor, args: dict[str, Any], transposed: bool) -> tuple[Tensor, int]:
    """weight as [groups, out per group, in per group, taps]."""
    groups = int(args.get("groups", 1))
    taps = weight.flatten(2)
    if transposed:
        return taps.reshape(groups, -1, *taps.shape[1:]).transpose(1, 2), groups
    return taps.reshape(groups, -1, *taps.shape[1:]), groups


def is_transposed(node: fx.Node, args: dict[str, Any]) -> bool:
    return bool(args.get("transposed")) or "transpose" in op_name(node)


@constants_of(*CONVOLUTIONS)
def conv(run: Interpreter, node: fx.Node, args: dict[str, Any]) -> Value | None:
    """Output constants: zero inputs always; other constants only where no padding hides taps."""
    x, w = run.of(args["input"]), run.of(args["weight"])
    space = len(shape_of(args["weight"])) - 2
    if not bool(w.known.all()) or len(shape_of(args["input"])) != space + 2:
        return None
    channels = shape_of(args["input"])[1]
    uniform = all(size == 1 for size in (*x.value.shape[2:], *x.known.shape[2:], x.value.shape[0], x.known.shape[0]))
    transposed = is_transposed(node, args)
    padding = args.get("padding", 0)
    edges = transposed or padding == "same" or (any(padding) if isinstance(padding, (tuple, list)) else bool(padding))
    if uniform:
        value, known = x.value.reshape(-1).expand(channels), x.known.reshape(-1).expand(channels)
    else:
        planes = (0, *range(2, space + 2))
        zero = x.zero.expand(torch.broadcast_shapes(x.value.shape, x.known.shape)).amin(planes)
        value, known = torch.zeros(channels, dtype=x.value.dtype, device="cpu"), zero.expand(channels)
    if edges:
        known = known & (value == 0)
    taps, groups = conv_terms(w.value, args, transposed)
    nonzero = (taps != 0).any(-1).float()
    varying = torch.einsum("goi,gi->go", nonzero, (~known).float().reshape(groups, -1)).reshape(-1)
    out = torch.einsum("goi,gi->go", taps.sum(-1), (value * known).to(taps.dtype).reshape(groups, -1)).reshape(-1)
    result_known = varying < 0.5
    if args.get("bias") is not None:
        bias = run.of(args["bias"])
        out, result_known = out + bias.value, result_known & bias.known
    shape = (1, -1, *[1] * space)
    return Value((out * result_known).reshape(shape), result_known.reshape(shape))


@constants_of("batch_norm", "native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training")
def batch_norm(run: Interpreter, node: fx.Node, args: dict[str, Any]) -> Any:
    x = run.of(args["input"])
    rank, channels = len(shape_of(args["input"])), shape_of(args["input"])[1]
    names = ("running_mean", "running_var", "weight", "bias")
    tensors = {name: run.of(args[name]) if args.get(name) is not None else None for name in names}
    if any(item is not None and not bool(item.known.all()) for item in tensors.values()):
        return None
    if tensors["running_mean"] is None or tensors["running_var"] is None:
        return None
    plain = {name: item.value if item is not None else None for name, item in tensors.items()}
    mean, var = plain["running_mean"], plain["running_var"]
    assert mean is not None and var is not None
    gamma = plain["weight"] if plain["weight"] is not None else torch.ones_like(mean)
    beta = plain["bias"] if plain["bias"] is not None else torch.zeros_like(mean)
    uniform = all(size == 1 for i, size in enumerate(x.value.shape) if i != 1)
    given = x.value.reshape(-1).expand(channels) if uniform else torch.zeros_like(mean)
    known = (
        (x.known if uniform else torch.zeros((1,) * rank, dtype=torch.bool, device="cpu")).reshape(-1).expand(channels)
    )
    if run.training:
        # Batch statistics of an all-zero channel are (0, 0): it becomes beta, in eval mode too if its mean is 0.
        known = known & (given == 0) & (mean == 0)
    eps = float(args.get("eps", 1e-5))
    value = F.batch_norm(given[None].to(gamma.dtype), mean, var, gamma, beta, False, 0.0, eps)[0]
    flat = gamma == 0
    value = torch.where(flat, beta, value)
    known = known | flat
    shape = [channels if i == 1 else 1 for i in range(rank)]
    return first_output(node, Value((value * known).reshape(shape), known.reshape(shape)))


@constants_of("group_norm", "native_group_norm", "instance_norm", "layer_norm", "native_layer_norm", "rms_norm")
def norm(run: Interpreter, node: fx.Node, args: dict[str, Any]) -> Any:
    """Group, instance, layer and RMS norm: a zero weight leaves the bias."""
    weight = args.get("weight")
    if weight is None or not run.of(weight).anything:
        return None
    rank = len(shape_of(args["input"]))
    per_channel = "layer" not in op_name(node) and "rms" not in op_name(node)
    flat = run.of(weight).zero
    bias = run.of(args["bias"]).value if args.get("bias") is not None else torch.zeros_like(run.of(weight).value)
    flat = flat.expand(bias.shape)
    shape = (1, -1, *[1] * (rank - 2)) if per_channel else (*[1] * (rank - bias.dim()), *bias.shape)
    return first_output(node, Value((bias * flat).reshape(shape), flat.reshape(shape)))


@constants_of("scaled_dot_product_attention", "_scaled_dot_product_flash_attention_for_cpu")
def attention(run: Interpreter, node: fx.Node, args: dict[str, Any]) -> Any:
    """Weighted means of v: a value column that is zero everywhere stays zero."""
    value = run.of(args["value"])
    if not value.anything or shape_of(args["value"])[-3:-2] != shape_of(args["query"])[-3:-2]:
        return None
    zero = value.zero.amin(-2, keepdim=True)
    return first_output(node, Value(torch.zeros_like(zero, dtype=value.value.dtype), zero))


@constants_of("einsum")
def einsum(run: Interpreter, node: fx.Node, args: dict[str, Any]) -> Value | None:
    """Only zeros: positions none of whose terms can be nonzero."""
    terms = einsum_terms(args["equation"])
    if terms is None or not any(run.of(item).anything for item in args["tensors"]):
        return None
    maybe = [~run.of(item).zero for item in args["tensors"]]
    zero = torch.einsum(args["equation"].replace(" ", ""), *(item.float() for item in maybe)) < 0.5
    return Value(torch.zeros(zero.shape, dtype=torch.float32, device="cpu"), zero)


def einsum_terms(equation: str) -> tuple[str, str, str] | None:
    """(left, right, out) letters of a plain two-operand product, else None."""
    equation = equation.replace(" ", "")
    if "." in equation or "->" not in equation or equation.count(",") != 1:
        return None
    operands, out = equation.split("->")
    left, right = operands.split(",")
    if any(len(set(part)) != len(part) for part in (left, right, out)):
        return None
    return left, right, out


@constants_of("embedding")
def embedding(run: Interpreter, node: fx.Node, args: dict[str, Any]) -> Value:
    weight = run.of(args["weight"])
    same = (weight.value == weight.value[:1]).all(0) & weight.known.expand(weight.value.shape).all(0)
    shape = (*[1] * len(shape_of(args["indices"])), -1)
    return Value((weight.value[0] * same).reshape(shape), same.reshape(shape))


@constants_of("prelu")
def prelu(run: Interpreter, node: fx.Node, args: dict[str, Any]) -> Value:
    x, slope = run.of(args["self"]), run.of(args["weight"]).value
    rank = len(shape_of(node))
    slope = slope.reshape(1, -1, *[1] * (rank - 2)) if rank > 1 else slope
    value = torch.where(x.value >= 0, x.value, x.value * slope)
    return Value(value, x.known.expand(torch.broadcast_shapes(value.shape, x.known.shape)))


@constants_of("glu")
def glu(run: Interpreter, node: fx.Node, args: dict[str, Any]) -> Value | None:
    x, dim, shape = run.of(args["self"]), args["dim"], shape_of(args["self"])
    if not x.anything:
        return None
    parts = [grown(item, dim, shape[dim]).chunk(2, dim) for item in (x.value, x.known)]
    (a, b), (a_known, b_known) = parts
    known = (a_known & b_known) | (a_known & (a == 0))
    return compressed(Value(a * torch.sigmoid(b) * known, known.expand(torch.broadcast_shapes(a.shape, known.shape))))


@constants_of("full", "zeros", "ones", "new_zeros", "new_ones", "new_full", "zeros_like", "ones_like", "full_like")
def filled(run: Interpreter, node: fx.Node, args: dict[str, Any]) -> Value | None:
    fill = {"zeros": 0.0, "new_zeros": 0.0, "zeros_like": 0.0, "ones": 1.0, "new_ones": 1.0, "ones_like": 1.0}
    fill_value = fill.get(op_name(node), args.get("fill_value"))
    if not isinstance(fill_value, (int, float)) or math.isnan(float(fill_value)):
        return None
    meta = node.meta["val"]
    return constant(torch.full((1,) * meta.dim(), fill_value, dtype=meta.dtype, device="cpu"))
