"""Was it worth it: the clock's verdict on a compact model, and the reason when nothing was removed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from gossamer import measure
from gossamer.wrappers import seen_through

from .borrow import evaluating, ordinary, undisturbed
from .capture import call_arguments
from .watchers import quiet

if TYPE_CHECKING:
    from .graph import ChannelGraph
    from .liveness import Liveness

RUNS = 3


class CompactWarning(UserWarning):
    """`compact` removed nothing, or could not tell whether the compact model is faster."""


def timed(model: nn.Module, twin: nn.Module, example_inputs: Any, watches: Mapping[int, bool]) -> dict[str, Any]:
    """Time both models in turn, as plain code; {"verdict": "faster", "slower" or "inconclusive", and the comparison}.

    Noise is no verdict: "slower" takes two runs of three in which the quartiles of the compact model and those of the
    original against itself (the A/A control) do not overlap. One busy moment of the machine then decides nothing.
    Hooks that only watch, by `watches` of the capture, see no call.
    """
    args, kwargs = ordinary(call_arguments(example_inputs))
    found: list[str] = []
    with (
        undisturbed(model), undisturbed(twin), evaluating(model), evaluating(twin),
        seen_through(model), seen_through(twin), torch.inference_mode(),
        quiet(model, watches), quiet(twin, watches),
    ):  # fmt: skip
        calls = {"original": lambda: model(*args, **kwargs), "compact": lambda: twin(*args, **kwargs)}
        for _ in range(RUNS):
            comparison = measure.interleave(calls, baseline="original", reps=11, seconds=30.0)
            found.append(comparison.verdict("compact"))
            if found.count(found[-1]) == 2 or (found[-1] == "faster" and "slower" not in found):
                verdict = found[-1]
                break
        else:
            verdict = "inconclusive"
    return {"verdict": verdict, **comparison.to_dict()}


def told(latency: dict[str, Any]) -> str:
    """The comparison in words."""
    original, small = latency["rows"]
    control = latency["control"]
    return (
        f"{small['median'] * 1e3:.3f} ms instead of {original['median'] * 1e3:.3f} ms ({small['ratio']:.2f}x, "
        f"{small['ratio_q1']:.2f}x to {small['ratio_q3']:.2f}x; the same model against itself gives "
        f"{control['ratio_q1']:.2f}x to {control['ratio_q3']:.2f}x)"
    )


def why_nothing(graph: ChannelGraph, liveness: Liveness, unfit: dict[str, str], multiple: int) -> str:
    """The reason why no channel of `graph` went, most specific first."""
    if unfit:
        return f"dead channels cannot go: {_several(unfit)}"
    if not graph.removable:
        return f"no group of channels can shrink: {_several({g.name: str(g.frozen) for g in graph.groups})}"
    spare = sum(int(gone.sum()) for gone in liveness.dead.values())
    if spare:
        why = f"for widths in multiples of {multiple} (round_to=None removes more)" if multiple > 1 else "by request"
        return f"{spare} dead channels stay, {why}"
    channels = sum(group.channels for group in graph.removable)
    constant = sum(int((~values.isnan()).sum()) for values in liveness.constants.values())
    left = f"; {constant} carry a constant that is not zero (fold=True can move some)" if constant else ""
    return f"none of the {channels} channels of {len(graph.removable)} groups is dead{left}"


def _several(reasons: dict[str, str]) -> str:
    lines = [f"{name}: {reason}" for name, reason in list(reasons.items())[:4]]
    return "; ".join(lines) + (f"; and {len(reasons) - 4} more" if len(reasons) > 4 else "")
