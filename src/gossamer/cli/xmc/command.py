"""`gossamer xmc COMMAND`: choose the command.

gossamer xmc data     make a data set from what this machine has, in the standard layout
"""

from __future__ import annotations

from collections.abc import Sequence

HELP = """usage: gossamer xmc COMMAND [flags]

  data      make a data set from what this machine has: stdlib, debtags or planted

gossamer xmc COMMAND --help lists the flags of a command.
"""


def run(argv: Sequence[str]) -> None:
    """Run one command of extreme classification."""
    command, rest = (argv[0], list(argv[1:])) if argv else ("--help", [])
    if command in ("-h", "--help", "help"):
        print(HELP, end="")
    elif command == "data":
        from gossamer.cli.xmc.data import run as data

        data(rest)
    else:
        raise ValueError(f"there is no command xmc {command!r}; expected data")
