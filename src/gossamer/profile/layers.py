"""Layers that tokens do not need: what each contributes, and what skipping those that contribute little would bring."""

from __future__ import annotations

import shlex

from gossamer.profile.findings import Finding, Place, combined, verdict_of
from gossamer.profile.study import Study
from gossamer.routing.profiling.profiling import profile


def find_layers(study: Study) -> Finding:
    """The finding `layers`: pairs of token and layer whose contribution to the token's state is small."""
    if study.stack is None:
        why = f"{type(study.model).__name__} has no list of residual blocks, which tokens could skip"
        return Finding("layers", "not measured because", why)
    try:
        found = profile(study.model, [batch.given for batch in study.batches])
    except ValueError as error:
        return Finding("layers", "not measured because", str(error))
    shares = found.below(study.idle)
    share = sum(shares) / len(shares)
    said = (
        f"{share:.1%} of the pairs of token and layer contribute up to {study.idle:.0%} of the token's state, over "
        f"{found.tokens:,} tokens and {found.layers} layers; layer {found.order()[0]} contributes least"
    )
    if share == 0:
        return Finding("layers", "nothing here", said, 0.0)
    places = [
        Place(name, each, study.times.share[name], 1 / max(1 - each, 0.01))
        for name, each in zip(study.blocks, shares, strict=True)
    ]
    how = "if a token costs nothing in a layer that it skips: counted, from each layer's share of the time"
    gain = combined(places, study.a_pass, how)
    places.sort(key=lambda place: -place.share)
    if not study.is_decoder:
        said += ". Only causal language models of transformers can be routed, so nothing of it can be gained here"
        return Finding("layers", "nothing here", said, share, where=tuple(places))
    said += ". What the model loses by it must be measured"
    return Finding("layers", verdict_of(gain), said, share, gain, tuple(places), _to_try(study, share))


def _to_try(study: Study, share: float) -> str:
    budget = max(round(1 - share, 2), 0.05)
    if study.name is not None:
        text = "" if study.text is None else f" --text {shlex.quote(study.text)}"
        return f"gossamer route distill {shlex.quote(study.name)} --budget {budget:g}{text} --out router.safetensors"
    return (
        "import gossamer as gs\n\n"
        f'radial = gs.routing.Radial(model, mode="skip")\n'
        f"gs.routing.distill(radial, None, batches, budget={budget:g}, steps=200)"
    )
