"""Padding: tokens that attention masks hide, and what leaving them out of a batch would bring."""

from __future__ import annotations

import torch

from gossamer import measure
from gossamer.compile.options import Options
from gossamer.profile.batches import Batch
from gossamer.profile.findings import Finding, Gain, Place, told, verdict_of
from gossamer.profile.study import Study

LINES = """\
import torch
import gossamer as gs

fast = torch.compile(model, backend="gossamer")
with torch.no_grad():
    fast(**batches[0])"""


def find_padding(study: Study) -> Finding:
    """The finding `padding`: the share of padded tokens in batches as they came, and a pass without them."""
    masks = [(at, batch.mask) for at, batch in enumerate(study.batches) if batch.mask is not None]
    if not masks:
        why = "the data has no attention masks, which say where padding is"
        if all(batch.ids is None for batch in study.batches):
            why = "the data has no texts, which are padded to one length"
        return Finding("padding", "nothing here", why)
    shares = {at: 1 - float((mask != 0).float().mean()) for at, mask in masks if mask is not None}
    tokens = sum(mask.numel() for _, mask in masks if mask is not None)
    share = sum(shares[at] * mask.numel() for at, mask in masks if mask is not None) / tokens
    places = tuple(Place(f"batch {at}", each) for at, each in sorted(shares.items(), key=lambda pair: -pair[1]))
    one = all(batch.examples == 1 for batch in study.batches)
    if share == 0:
        found = "no token is padding" + (": a batch is one text. --batch, or longer batches, may show some" * one)
        return Finding("padding", "nothing here", found, 0.0)
    found = f"{share:.1%} of {tokens:,} tokens are padding: 1 / (1 - padding) is {1 / (1 - share):.2f}"
    if share < Options().min_padding:
        return Finding(
            "padding", "too little to gain", f"{found}. Below {Options().min_padding:.0%} a batch stays as it is",
            share, where=places,
        )  # fmt: skip
    # The batch whose padding is most like that of all.
    batch = study.batches[min(shares, key=lambda at: abs(shares[at] - share))]
    packed = _packed(batch)
    if packed is None:
        return Finding("padding", "not measured because", f"{found}, but no batch has input_ids", share, where=places)
    run = measure.interleave(
        {"padded": lambda: batch.run(study.model), "packed": lambda: packed.run(study.model)}, reps=7, seconds=8.0
    )
    ratio, noise = told(run, "packed")
    how = f"that pass and one over as many real tokens, without padding, took turns{noise}"
    base = f"a pass over {batch} in eager mode"
    gain = Gain(ratio, base, how)
    return Finding("padding", verdict_of(gain), found, share, gain, places, LINES)


def _packed(batch: Batch) -> Batch | None:
    """About as many real tokens as in a batch, in as many texts, all of one length."""
    ids, mask = batch.kwargs.get("input_ids"), batch.mask
    if ids is None or mask is None:
        return None
    real = ids[mask != 0]
    length = max(len(real) // len(ids), 1)
    if len(real) < len(ids):
        return None  # a text without a token
    kwargs = dict(batch.kwargs)
    for name, value in batch.kwargs.items():
        if isinstance(value, torch.Tensor) and value.shape[:2] == ids.shape:
            kwargs[name] = value[:, :length].contiguous()
    kwargs["input_ids"] = real[: len(ids) * length].view(len(ids), length)
    kwargs["attention_mask"] = mask.new_ones(len(ids), length)
    return Batch(kwargs, (), kwargs)
