"""Experts that are one module: their weights lie in parameters of three dimensions, as transformers keeps them.

    gate_up_proj [experts, 2 * hidden, dim] (or up_proj [experts, hidden, dim]), down_proj [experts, dim, hidden]

or each matrix the other way round. No nn.Linear is there for who looks for linears, so they are named here.
"""

from __future__ import annotations

from torch import nn


def first_product(module: nn.Module) -> str:
    """What fused experts call the weights of their first product, whatever holds them."""
    return "gate_up_proj" if hasattr(module, "gate_up_proj") else "up_proj"


def up_name(module: nn.Module) -> str | None:
    """The name of the first product's weights if the module is fused experts, else None."""
    own, name = module._parameters, first_product(module)
    return name if _is_stack(own.get(name)) and _is_stack(own.get("down_proj")) else None


def described(module: nn.Module) -> str:
    """What fused experts are, for reports."""
    down = module.get_parameter("down_proj")
    count = sum(parameter.numel() for parameter in module.parameters(recurse=False))
    return f"{len(down)} experts in one {type(module).__name__}, {count:,} parameters"


def fused_parameters(model: nn.Module) -> int:
    """How many parameters of a model are in fused experts."""
    found = {
        id(parameter): parameter.numel()
        for module in model.modules()
        if up_name(module) is not None
        for parameter in module.parameters(recurse=False)
    }
    return sum(found.values())


def _is_stack(parameter: nn.Parameter | None) -> bool:
    return parameter is not None and parameter.dim() == 3
