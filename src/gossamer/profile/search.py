"""`find_sparsity`: look for each kind of dynamic sparsity in a model, on its own data."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from gossamer import measure
from gossamer.compaction.borrow import refuse_shards, undisturbed
from gossamer.nn.evaluating import evaluating
from gossamer.profile.attention import find_attention
from gossamer.profile.batches import batches_of
from gossamer.profile.channels import find_channels, find_width
from gossamer.profile.decoding import find_decoding, find_small
from gossamer.profile.experts import find_experts
from gossamer.profile.findings import KINDS, Finding, Findings, in_order
from gossamer.profile.labels import find_labels
from gossamer.profile.layers import find_layers
from gossamer.profile.padding import find_padding
from gossamer.profile.study import Study, on_cpu
from gossamer.profile.zeros import find_zeros
from gossamer.wrappers import seen_through, unwrap

_FINDERS: dict[str, Callable[[Study], Finding]] = {
    "zeros": find_zeros, "decoding": find_decoding, "small": find_small, "padding": find_padding,
    "experts": find_experts, "layers": find_layers, "attention": find_attention, "channels": find_channels,
    "width": find_width, "labels": find_labels,
}  # fmt: skip


def find_sparsity(
    model: nn.Module,
    batches: Any,
    *,
    kinds: Iterable[str] = tuple(KINDS),
    max_error: float = 0.1,
    idle: float = 0.1,
    name: str | None = None,
    source: str | None = None,
    progress: Callable[[str], object] = lambda kind: None,
) -> Findings:
    """Measure where a model's dynamic sparsity is, what using it is expected to gain here, and say what to try.

    The model runs in eval mode, without gradients, some dozen times, and is left as it was: parameters, buffers, modes,
    hooks and random numbers. Parts of it are timed beside what would take their place, on its own data, by
    `gs.measure.interleave`; by Amdahl's law and each part's share of the time follows the gain of the whole.

    Args:
        model: any module, in eager mode, on a CPU.
        batches: what it reads: a batch, or an iterable of some. A batch is a tensor (examples, or token ids
            int64[texts, tokens]), a mapping of keyword arguments as tokenizers return it, or a tuple that begins with
            one of these, as data loaders return it. A few are enough; their sizes should be those of use.
        kinds: which to look for, of `KINDS`.
        max_error: for "small": how far the outputs of layers may move, as a share of their length, above 0 and below 1.
        idle: for "layers": the contribution to a token's state up to which a token does not need a layer, 0 to 1.
        name, source: of model and data on a command line, for the commands that are suggested; None: lines of Python.
        progress: told of each kind before it is looked for.

    Returns:
        `Findings`, what pays first. Print it; or `to_dict()`, `to_json(path)`.

    Raises:
        TypeError, ValueError: naming the argument, its value and what was expected, before the first pass; a batch that
        the model does not take.

    >>> net = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 10))
    >>> found = find_sparsity(net, torch.randn(16, 32), kinds=["zeros", "padding"])
    >>> 0.2 < found["zeros"].share < 0.5, found["padding"].verdict
    (True, 'nothing here')
    """
    wanted = _checked(model, kinds, max_error, idle)
    network = unwrap(model)
    study = Study(network, batches_of(network, batches), max_error, idle, name, source)
    found: list[Finding] = []
    with undisturbed(network), evaluating(network), seen_through(network):
        for kind in wanted:
            progress(kind)
            found.append(_FINDERS[kind](study))
        notes = _notes(study)
    kind = type(network).__name__
    return Findings(
        kind if name is None else f"{name} ({kind})",
        f"{len(study.batches)} batch{'es' * (len(study.batches) > 1)}, the largest {study.largest}"
        + ("" if source is None else f", of {source}"),
        in_order(found), notes, measure.environment(),
    )  # fmt: skip


def _checked(model: nn.Module, kinds: Iterable[str], max_error: float, idle: float) -> tuple[str, ...]:
    """The kinds that were asked for.

    Raises:
        TypeError, ValueError: naming the argument.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    refuse_shards(model)
    if any(nn.parameter.is_lazy(parameter) for parameter in model.parameters()):
        raise ValueError(f"model is a {type(model).__name__} whose layers have no shape yet; run a batch first")
    if not on_cpu(model):
        raise ValueError("model must be on a CPU, where its parts are timed; got one with parameters elsewhere")
    if isinstance(kinds, str):
        raise TypeError(f"kinds must be names, not one string: got {kinds!r}")
    wanted = tuple(dict.fromkeys(kinds))
    unknown = [kind for kind in wanted if kind not in KINDS]
    if unknown or not wanted:
        raise ValueError(f"kinds must be some of {', '.join(KINDS)}; got {unknown[0] if unknown else 'none'}")
    for argument, value, within in (("max_error", max_error, 0 < max_error < 1), ("idle", idle, 0 <= idle <= 1)):
        if not within:
            raise ValueError(f"{argument} must be a share of 1, got {value!r}")
    return wanted


def _notes(study: Study) -> tuple[str, ...]:
    notes = []
    if torch.get_num_threads() > 1:
        notes.append(
            f"Times are of this machine with {torch.get_num_threads()} threads, and of nothing else running on it."
        )
    notes.append("Gains of different findings are not added up: they can be of the same time.")
    return tuple(notes)
