"""`gossamer xmc COMMAND`: choose the command.

gossamer xmc data       make a data set from what this machine has, in the standard layout
gossamer xmc train      train a classifier, choose its best epoch, report
gossamer xmc evaluate   measure a classifier on the test part of a data set
gossamer xmc predict    the best labels of texts
gossamer xmc subset     a smaller classifier that knows some labels only
"""

from __future__ import annotations

from collections.abc import Sequence

from gossamer.cli.mistakes import unknown

HELP = """usage: gossamer xmc COMMAND [flags]

  data      make a data set from what this machine has: stdlib, debtags or planted
  train     train a classifier, keep its best epoch, write a report
  evaluate  measure a classifier on the test part of a data set
  predict   the best labels of texts
  subset    a smaller classifier that knows some labels only

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
    elif command == "train":
        from gossamer.cli.flags import needs_tyro

        needs_tyro()
        from gossamer.cli.xmc.train import main as train

        train(rest)
    elif command in ("evaluate", "predict", "subset"):
        from gossamer.cli.flags import parse
        from gossamer.cli.xmc import predicting

        program = f"gossamer xmc {command}"
        if command == "evaluate":
            predicting.evaluate(parse(predicting.Evaluate, program, rest))
        elif command == "predict":
            predicting.predict(parse(predicting.Predict, program, rest))
        else:
            predicting.subset(parse(predicting.Subset, program, rest))
    else:
        raise ValueError(unknown("command xmc", command, ("data", "train", "evaluate", "predict", "subset")))
