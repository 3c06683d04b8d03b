"""`gossamer route COMMAND`: choose the command.

gossamer route profile    what each layer contributes to the states of tokens
gossamer route distill    teach a router which layers the tokens of a model need
gossamer route train      a language model from scratch whose tokens choose their layers
gossamer route eval       how well a model foretells text, routed and not, and what a token costs
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence

from gossamer.cli.mistakes import unknown

COMMANDS = {
    "profile": "measure what each layer contributes to the states of tokens: is there anything to skip?",
    "distill": "teach a router which layers the tokens of a model need, on a budget",
    "train": "make a language model from scratch whose tokens choose their layers",
    "eval": "how well a model foretells text, routed and not, and what a token costs",
}
"""Commands of a module of their name, which has their flags (a class of the same name) and `run`."""

_HELP = """usage: gossamer route COMMAND [flags]

Every token of a language model runs every layer, and many layers change it little. Routing lets tokens skip such
layers, which saves their time.

{commands}

Begin with what there is to gain:

  gossamer model smollm2                            # fetch a small model, once
  gossamer route profile smollm2 --html profile.html
  gossamer route distill smollm2 --budget 0.9 --out router.safetensors
  gossamer route eval smollm2 --router router.safetensors

gossamer route COMMAND --help lists the flags of a command.
"""


def run(argv: Sequence[str]) -> None:
    """Run one command of routing."""
    command, rest = (argv[0], list(argv[1:])) if argv else ("--help", [])
    if command in ("-h", "--help", "help"):
        print(_HELP.format(commands="\n".join(f"  {name:<8}  {about}" for name, about in COMMANDS.items())), end="")
    elif command in COMMANDS:
        from gossamer.cli.flags import needs_tyro, parse

        needs_tyro()
        module = importlib.import_module(f"gossamer.cli.route.{command}")
        module.run(parse(getattr(module, command.title()), f"gossamer route {command}", rest))
    else:
        raise ValueError(unknown("command route", command, COMMANDS))
