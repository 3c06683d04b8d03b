"""`torch.compile(model, backend="gossamer")`: what a graph can leave out is left out, inductor gets the rest."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping
from typing import Any

from torch.fx import GraphModule

from gossamer.compile.attend import attend
from gossamer.compile.cut import cut
from gossamer.compile.finding import Finding
from gossamer.compile.operators import CannotPack
from gossamer.compile.options import Options, options_of
from gossamer.compile.padded import Padded
from gossamer.compile.padding import Plan, Refusal, plan
from gossamer.compile.pieces import Compiler, inductor
from gossamer.compile.record import Record, observers
from gossamer.compile.tally import Tally

_LOG = logging.getLogger(__name__)


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
    if compiler is None:
        compiler = inductor if options.inductor is None else functools.partial(inductor, config=options.inductor)
    findings: list[Finding] = []
    run: Any = None
    tally = Tally()
    if "padding" in options.passes:
        run, more = _padded(gm, options, compiler, tally)
        findings += more
    record = Record(tuple(findings), tally)
    for observe in observers:
        observe(record)
    return run if run is not None else compiler(gm, example_inputs)


def _padded(gm: GraphModule, options: Options, compiler: Compiler, tally: Tally) -> tuple[Any, list[Finding]]:
    try:
        found = plan(gm.graph, attend)
        if isinstance(found, Plan):
            return Padded(gm, found, cut(gm, found), options, compiler, tally), found.findings
        refusal = found
    except CannotPack as error:
        refusal = Refusal(str(error))
    except Exception as error:  # the dense graph is right whatever is wrong here
        _LOG.warning("padding is not left out, because of a fault in gossamer: %r", error, exc_info=True)
        refusal = Refusal(f"a fault in gossamer: {error!r}")
    tally.refused = refusal.why
    return None, list(refusal.findings)
