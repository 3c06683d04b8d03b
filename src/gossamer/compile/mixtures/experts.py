"""Mixture of experts in transformers: the implementation named "gossamer" of its experts interface.

    up[e]   = x[t] @ W_up[id] + b_up[id]           entry e = (t, j) is token t at its j-th expert, id = ids[t, j]
    down[e] = gate(up[e]) @ W_down[id] + b_down[id]
    y[t]    = sum over j of weights[t, j] * down[t, j]

Both products are grouped products over one index (`gossamer.ops.grouped_matmul`): no token is dropped, nothing is
padded, the weights are read where they lie. Importing this module makes the name known.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from transformers.integrations.moe import ExpertsInterface

from gossamer.compile.mixtures.expert_rows import expert_index, expert_rows
from gossamer.nn.fused import first_product
from gossamer.ops.arguments import FLOATS
from gossamer.ops.grouped import GroupedMm
from gossamer.pattern.build import route

NAME = "gossamer"


def experts(module: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """The weighted sum of what each token's experts make of it.

    Args:
        module: experts of transformers, with the weights and the flags that `use_experts_implementation` gives them.
        hidden_states: [T, dim] in float32, bfloat16 or float16 (float64 on a CPU).
        top_k_index: integers [T, k]; on a rank of several, the number of its experts stands for an expert elsewhere.
        top_k_weights: [T, k].

    Returns:
        [T, dim] in hidden_states' dtype. Products have the weights' dtype, under autocast too.

    Raises:
        ValueError, TypeError: weights that no grouped product can read: quantized, of a device mesh, in another layout.
    """
    has_gate, parallel = module.has_gate, module._is_expert_parallel
    kind = first_product(module)
    up, down = weights_of(module, kind), weights_of(module, "down_proj")
    tokens, k = top_k_index.shape
    count, ids = up.shape[0], top_k_index
    if parallel:
        elsewhere = ids >= count
        ids, top_k_weights = ids.masked_fill(elsewhere, -1), top_k_weights.masked_fill(elsewhere, 0.0)
    if torch.compiler.is_compiling():
        return _in_a_graph(module, hidden_states, ids, top_k_weights, kind)
    chosen = ids.reshape(-1)
    index = route(chosen.unsqueeze(1), count, "top_k_index")
    inner = _product(module, hidden_states.to(up.dtype), kind, up, chosen, k, index)
    inner = module._apply_gate(inner) if has_gate else module.act_fn(inner)
    y = _product(module, inner.to(down.dtype), "down_proj", down, chosen, 1, index)
    if module.has_post_expert_norm:
        y = module.post_expert_norm(y)
    y = y * top_k_weights.reshape(-1, 1)
    if k != 1:
        y = y.view(tokens, k, y.shape[1]).sum(1)
    return y.to(hidden_states.dtype)


def _in_a_graph(module: Any, hidden_states: Tensor, ids: Tensor, weights: Tensor, kind: str) -> Tensor:
    """The same, with a dimension for each token and one for its experts, which a compiler can follow."""
    parallel = module._is_expert_parallel
    index = expert_index(ids, weights_of(module, kind).shape[0])

    def product(x: Tensor, name: str) -> Tensor:
        matrices, transposed = weights_of(module, name), not module.is_transposed
        if not matrices.is_contiguous():
            matrices, transposed = matrices.mT, not transposed
        y = expert_rows(x.to(matrices.dtype), ids, *index, matrices, transposed)
        if module.has_bias:
            y = y + F.embedding(ids.clamp(min=0) if parallel else ids, getattr(module, f"{name}_bias"))
        return y

    inner = product(hidden_states, kind)
    inner = module._apply_gate(inner) if module.has_gate else module.act_fn(inner)
    y = product(inner, "down_proj")
    if module.has_post_expert_norm:
        y = module.post_expert_norm(y)
    return (y * weights.unsqueeze(-1)).sum(1).to(hidden_states.dtype)


def _product(
    module: Any, x: Tensor, name: str, weights: Tensor, chosen: Tensor, k: int, index: tuple[Tensor, Tensor]
) -> Tensor:
    """[entries, n]: each row of x with the weights, and the bias, of each of its k experts, which `chosen` names."""
    transposed = not module.is_transposed
    if not weights.is_contiguous():  # the other way round, then: `weights_of` has refused what is neither
        weights, transposed = weights.mT, not transposed
    offsets, order = index
    # Not the public function, whose checks of what is known here would take longer than a token's products.
    y: Tensor = GroupedMm.call(x, weights, order, offsets, k, transposed, None)
    if module.has_bias:
        bias: Tensor = getattr(module, f"{name}_bias")
        y = y + bias[chosen.clamp(min=0) if module._is_expert_parallel else chosen]
    return y


def weights_of(module: nn.Module, name: str) -> Tensor:
    """The weights [experts, ., .] called `name`; refuses what a grouped product would have to copy or cannot read."""
    weights = getattr(module, name, None)
    if not isinstance(weights, Tensor) or weights.dim() != 3:
        raise _refused(module, name, "must be one tensor of three dimensions", weights)
    if is_traceable_wrapper_subclass(weights):
        raise _refused(module, name, "must be a plain tensor: not quantized, nor spread over a device mesh", weights)
    if weights.dtype not in FLOATS:
        raise _refused(module, name, "must be float32, float64, bfloat16 or float16", weights)
    if not weights.is_contiguous() and not weights.mT.is_contiguous():
        raise _refused(module, name, "must lie matrix after matrix in memory, by rows or by columns", weights)
    return weights


def _refused(module: nn.Module, name: str, expected: str, got: object) -> TypeError:
    found = type(got).__name__
    if isinstance(got, Tensor):
        found = f"{found} of {got.dtype}{list(got.shape)}, strides {got.stride()}"
    return TypeError(
        f"experts_implementation='{NAME}' cannot serve {type(module).__name__}: {name} {expected}, got {found}; "
        "take another implementation with model.set_experts_implementation"
    )


ExpertsInterface.register(NAME, experts)
