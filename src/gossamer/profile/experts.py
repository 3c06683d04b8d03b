"""Mixtures of experts: how unevenly tokens choose, and what grouped products of what was chosen would bring."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from gossamer import measure
from gossamer.compile.mixtures.group import group_experts
from gossamer.compile.mixtures.loops import Block, blocks_of, watched
from gossamer.profile.findings import Finding, Place, combined, verdict_of
from gossamer.profile.study import Study
from gossamer.profile.times import timed

GROUP = """\
import gossamer as gs

print(gs.compile.group_experts(model, batches[0]))"""
SET = """\
import gossamer as gs

model.set_experts_implementation("gossamer")"""


def find_experts(study: Study) -> Finding:
    """The finding `experts`: how tokens are spread over experts, and the time of these layers grouped."""
    fused = {name: module for name, module in study.model.named_modules() if _is_fused(module)}
    if fused:
        return _fused(study, fused)
    blocks = blocks_of(study.model)
    if not blocks:
        return Finding("experts", "nothing here", "no layer has a list of alike networks beside a router")
    return _looping(study, blocks)


def _is_fused(module: nn.Module) -> bool:
    """Whether these are the experts of a model of transformers, in one tensor for each of their matrices."""
    down = getattr(module, "down_proj", None)
    return isinstance(down, Tensor) and down.dim() == 3 and hasattr(module, "_apply_gate") and hasattr(module, "config")


def _fused(study: Study, fused: dict[str, nn.Module]) -> Finding:
    from gossamer.compile.mixtures.experts import NAME, experts

    chosen: dict[str, Tensor] = {}
    ratio: dict[str, float] = {}

    def look(name: str) -> Any:
        def hook(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            given = [*args, *kwargs.values()]
            counts = torch.bincount(given[1].flatten().cpu(), minlength=len(module.down_proj))[: len(module.down_proj)]
            chosen[name] = chosen.get(name, 0) + counts
            if name not in ratio:
                run = measure.interleave(
                    {"now": lambda: module.forward(*given), "grouped": lambda: experts(module, *given)},
                    reps=5, sample=2e-3, seconds=1.5,
                )  # fmt: skip
                ratio[name] = run["grouped"].ratio if run.faster("grouped") else 1.0

        return hook

    hooks = [m.register_forward_pre_hook(look(name), with_kwargs=True) for name, m in fused.items()]
    try:
        study.largest.run(study.model)
    finally:
        for hook in hooks:
            hook.remove()
    time = timed(study.model, fused, lambda: study.largest.run(study.model)).share
    found, share = _spread(chosen)
    places = [Place(name, _idle(chosen[name]), time[name], ratio[name]) for name in fused]
    now = {str(getattr(module.config, "_experts_implementation", "eager")) for module in fused.values()}
    if now == {NAME}:
        return Finding(
            "experts", "nothing here", f"{found}. Their products are grouped already", share, where=tuple(places)
        )
    gain = combined(places, study.a_pass, f"each layer of experts was timed as it is ({', '.join(now)}) and grouped")
    return Finding("experts", verdict_of(gain), found, share, gain, tuple(places), SET)


def _spread(chosen: dict[str, Tensor]) -> tuple[str, float]:
    """How tokens are spread, in words, and the share of pairs of token and expert that need no product."""
    counts = torch.stack([each.double() for each in chosen.values()])
    tokens = counts.sum(1, keepdim=True)
    share = float((counts == 0).double().mean())
    most = float((counts.amax(1, keepdim=True) / tokens).mean())
    unused = int((counts == 0).sum())
    found = (
        f"{len(chosen)} layers of {counts.shape[1]} experts: the most chosen one gets {most:.1%} of the choices in the "
        f"mean (even would be {1 / counts.shape[1]:.1%}), {unused} of {counts.numel()} were chosen "
        "by no token of the batch"
    )
    return found, share


def _idle(counts: Tensor) -> float:
    return float((counts == 0).double().mean())


def _looping(study: Study, blocks: list[Block]) -> Finding:
    """Blocks that loop in Python, each tried on a copy of itself."""
    batch = study.largest
    watched(study.model, blocks, batch.args, batch.kwargs)
    ran = [block for block in blocks if block.kind in ("masked", "chosen", "stacked")]
    if not ran:
        why = "; ".join(f"{block.name or 'the model'}: {block.kind or 'it was not called'}" for block in blocks[:3])
        return Finding("experts", "not measured because", f"no block of experts could be followed ({why})")
    names = {block.name: block.module for block in ran}
    whole = "" in names  # the model itself is the block
    time = {"": 1.0} if whole else timed(study.model, names, lambda: batch.run(study.model)).share
    places, spread = [], {}
    for block in ran:
        counts = _rows(block)
        if counts is not None:
            spread[block.name] = counts
        places.append(
            Place(block.name or "the model", 0.0 if counts is None else _idle(counts), time[block.name], _alone(block))
        )
    found, share = _spread(spread) if spread else (f"{len(ran)} layers in which every expert gets every row", None)
    gain = combined(places, study.a_pass, "a copy of each layer of experts, grouped, and the layer itself took turns")
    return Finding("experts", verdict_of(gain), found, share, gain, tuple(places), GROUP)


def _rows(block: Block) -> Tensor | None:
    """Rows of each expert; None where each got all of them."""
    if block.kind != "chosen":
        return None
    rows = {id(expert): 0 for expert in block.experts.values()}
    for expert, x, _ in block.rows:
        rows[id(expert)] += len(x)
    return torch.tensor(list(rows.values()), device="cpu")


def _alone(block: Block) -> float:
    """How much faster a grouped copy of the block is; 1 where that is not clear or it cannot be grouped."""
    assert block.call is not None
    args, kwargs = block.call
    if args and kwargs:
        return 1.0
    twin = copy.deepcopy(block.module)
    report = group_experts(twin, args or kwargs, only_faster=False)
    if not report.changed:
        return 1.0
    run = measure.interleave(
        {
            "now": lambda: type(block.module).forward(block.module, *args, **kwargs),
            "grouped": lambda: twin(*args, **kwargs),
        },
        reps=5, sample=2e-3, seconds=1.5,
    )  # fmt: skip
    return run["grouped"].ratio if run.faster("grouped") else 1.0
