"""`torch.compile(model, backend="gossamer")`: what a graph can leave out is left out, inductor gets the rest."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from torch.fx import GraphModule

from gossamer.compile.finding import Finding
from gossamer.compile.marks import take_marks
from gossamer.compile.masks import masked
from gossamer.compile.mixtures import routed
from gossamer.compile.operators import CannotPack
from gossamer.compile.options import Options, options_of
from gossamer.compile.pieces import Compiler, inductor
from gossamer.compile.record import Record, observers
from gossamer.compile.respelling import copied, respelled
from gossamer.compile.tally import Tally
from gossamer.compile.unpadding.attend import attend, attend_across
from gossamer.compile.unpadding.cut import Cut, cut
from gossamer.compile.unpadding.padded import Padded
from gossamer.compile.unpadding.padding import Plan, Refusal, plan
from gossamer.compile.unpadding.padding_findings import findings_of
from gossamer.compile.work import works
from gossamer.compile.zeros import activations

_LOG = logging.getLogger(__name__)
Parts = tuple[GraphModule, Plan, Cut]
"""A graph that padding can be left out of, how, and its three parts."""


def gossamer(
    gm: GraphModule, example_inputs: list[Any], *, options: Mapping[str, Any] | None = None, mode: str | None = None
) -> Callable[..., Any]:
    """The backend. torch finds it by its name, "gossamer", where this package is installed.

    Args:
        gm, example_inputs: a graph of Dynamo's, and its inputs.
        options: see `gossamer.compile.Options`.
        mode: one of `torch.compile`'s, for what inductor compiles.

    Raises:
        ValueError, TypeError: an option that is not known, or of another kind.

    >>> import torch
    >>> torch.compile(torch.nn.Linear(4, 4), backend="gossamer")(torch.ones(2, 4)).shape
    torch.Size([2, 4])
    """
    return compiled(gm, example_inputs, options_of(options, mode))


def compiled(gm: GraphModule, example_inputs: list[Any], options: Options, compiler: Compiler | None = None) -> Any:
    """What is to be called in place of a graph.

    Args:
        compiler: what compiles the pieces. None: inductor.
    """
    if compiler is None:
        compiler = inductor if options.inductor is None else functools.partial(inductor, config=options.inductor)
    tally = Tally()
    marks, work = take_marks(gm), works(gm.graph)
    findings: dict[str, Finding] = {}
    if "activations" in options.passes:
        sources = [node.name for node in marks]
        rewrite = functools.partial(activations.rewrite, sources=sources, keep_packed=options.keep_packed)
        _add(findings, _tried(rewrite, gm))
    _add(findings, _tried(routed.find, gm))
    padded: Parts | None = None
    later: Padded | None = None
    dense = gm
    if "padding" in options.passes:
        padded, more = _planned(gm, tally)
        _add(findings, more)
        if padded is not None:
            dense = copied(gm)  # the packed graph is made of the other
            later, more = _later(padded, options, compiler, tally)
            _add(findings, more)
    if "masks" in options.passes:
        _add(findings, _tried(masked.rewrite, dense))
    ordered = sorted(findings.values(), key=lambda found: [*work, found.node].index(found.node))
    record = Record(tuple(replace(found, work=work.get(found.node, 0)) for found in ordered), tally)
    for observe in observers:
        observe(record)
    if padded is None:
        return compiler(gm, example_inputs)
    return Padded(dense, *padded, options, compiler, tally, later)


def _tried(rewrite: Callable[[GraphModule], list[Finding]], gm: GraphModule) -> list[Finding]:
    """What a pass found. A graph is right before and after each step of a pass, so it goes on after a fault of ours."""
    try:
        return rewrite(gm)
    except Exception as error:
        _LOG.warning("%s stopped, because of a fault in gossamer: %r", rewrite, error, exc_info=True)
        return []


def _add(findings: dict[str, Finding], more: list[Finding]) -> None:
    """One line for an operator, whoever found something in it."""
    for found in more:
        known = findings.get(found.node)
        if known is None or known.choice == "dense":
            findings[found.node] = found
        elif found.choice != "dense":
            findings[found.node] = replace(
                known, zeros=f"{known.zeros}, {found.zeros}", axes=(*known.axes, *found.axes),
                choice=f"{found.choice}; {known.choice}",
            )  # fmt: skip


def _later(parts: Parts, options: Options, compiler: Compiler, tally: Tally) -> tuple[Padded | None, list[Finding]]:
    """What stands for the last part where other tokens come behind the packed ones; None where that stays dense."""
    _, plan_, cut_ = parts
    if not plan_.others:
        return None, []
    mine = Tally()
    found, findings = _planned(cut_.after, mine)
    if found is None:
        return None, findings
    tally.later = mine
    return Padded(copied(cut_.after), *found, options, compiler, mine), findings


def _planned(gm: GraphModule, tally: Tally) -> tuple[Parts | None, list[Finding]]:
    """A respelled copy of a graph, its plan and its parts; None where it stays dense."""
    try:
        spelled = respelled(gm)
        found = plan(spelled.graph, attend, attend_across)
        if isinstance(found, Plan):
            return (spelled, found, cut(spelled, found)), findings_of(found, tally)
    except CannotPack as error:
        found = Refusal(str(error))
    except Exception as error:  # the dense graph is right whatever is wrong here
        _LOG.warning("padding is not left out, because of a fault in gossamer: %r", error, exc_info=True)
        found = Refusal(f"a fault in gossamer: {error!r}")
    tally.refused = found.why
    return None, findings_of(found, tally)
