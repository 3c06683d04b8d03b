"""`gossamer COMMAND`: choose the command, and turn errors into one line.

gossamer tour      seven systems on this machine, each beside its dense baseline
gossamer train     train dense and sparse, compact, measure, report
gossamer bench     measure on this machine
gossamer tune      time products on this machine for the planner
gossamer xmc       extreme classification: data sets
gossamer model     fetch a language model that commands take by its name
gossamer generate  complete a text, or answer a question about it
gossamer calibrate measure which heads of a model may stream
gossamer route     tokens that choose their layers
gossamer serve     a language model behind OpenAI's API
gossamer doctor    what this machine and installation can do
gossamer version   the version
"""

from __future__ import annotations

import errno
import importlib
import io
import logging
import os
import signal
import sys
import traceback
from collections.abc import Sequence

from gossamer.cli.stop import Stopped, again

_HELP = """usage: gossamer COMMAND [flags]

  tour      see what seven kinds of dynamic sparsity gain on this machine, and where they lose
  train     train a network dense and sparse, remove channels, measure, write a report
  bench     measure on this machine, each row beside its baselines
  tune      time dense and sparse products on this machine, for the planner's choices
  xmc       extreme classification: make a data set
  model     fetch a language model that commands take by its name
  generate  complete a text, or answer a question about it
  calibrate measure which heads of a language model need the first and last tokens only
  route     tokens that choose their layers: what layers contribute
  serve     serve a language model by OpenAI's API, with a page to look at
  doctor    what this machine and this installation can do, and why not
  version   the version

gossamer COMMAND --help lists the flags of a command.
"""

_PLAIN = ("bench", "tune", "model", "generate", "calibrate", "serve")
"""Commands of a module of their name, which has their flags and `run`."""


def _run(argv: Sequence[str]) -> None:
    command, rest = (argv[0], list(argv[1:])) if argv else ("--help", [])
    if command in ("-h", "--help", "help"):
        print(_HELP, end="")
    elif command in ("version", "--version"):
        import gossamer

        print(gossamer.__version__)
    elif command == "doctor":
        from gossamer import doctor

        if rest:
            raise ValueError(f"gossamer doctor takes no flags; {rest[0]!r} was given")
        print(doctor.text(doctor.report()))
    elif command == "train":
        from gossamer.cli.flags import parse
        from gossamer.cli.train.config import Train

        config = parse(Train, "gossamer train", rest)
        from gossamer.cli.train.command import run as train

        train(config, rest)
    elif command == "xmc":
        from gossamer.cli.xmc.command import run as xmc

        xmc(rest)
    elif command == "tour":
        from gossamer.cli.tour.command import run as tour

        tour(rest)
    elif command == "route":
        from gossamer.cli.route.command import run as route

        route(rest)
    elif command in _PLAIN:
        from gossamer.cli.flags import needs_tyro, parse

        needs_tyro()
        module = importlib.import_module(f"gossamer.cli.{command}")
        module.run(parse(getattr(module, command.title()), f"gossamer {command}", rest))
    else:
        raise ValueError(
            f"there is no command {command!r}; expected tour, train, bench, tune, xmc, model, generate, calibrate, "
            "route, serve, doctor or version"
        )


def _fail(error: BaseException, argv: Sequence[str]) -> int:
    """Say what is wrong in one line. Only errors of kinds the library raises about its input come here."""
    if "--debug" in argv:
        traceback.print_exception(error)
    said = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, OSError) and error.errno == errno.ENOSPC and error.strerror == os.strerror(errno.ENOSPC):
        # Every file of ours is named by the error that says it could not be written; this was the output.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        said = f"the output cannot be written: {error.strerror}"
    rank = os.environ.get("RANK", "0")
    place = "" if rank == "0" else f" in process {rank}"
    print(f"gossamer: error{place}: {said}", file=sys.stderr)
    return 2


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        The exit status: 0, 2 after an error of the user's making, 128 + the signal's number when stopped by one.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    logging.basicConfig(format="gossamer: %(message)s")
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal without the letter for it ends no run
    try:
        _run(argv)
        sys.stdout.flush()  # what was printed and cannot be written is said here, in place of Python's words at exit
    except Stopped as stopped:
        return 128 + stopped.signal
    except KeyboardInterrupt:
        if argv[:1] == ["train"]:
            print(f"\nstopped; what was saved can be resumed with:\n  {again(argv[1:])}", file=sys.stderr)
        return 128 + signal.SIGINT
    except BrokenPipeError:
        # The reader of a pipe went away (`gossamer doctor | head`); Python would complain again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except (ValueError, TypeError, ArithmeticError, RuntimeError, OSError, ImportError, MemoryError) as error:
        return _fail(error, argv)
    return 0


if __name__ == "__main__":
    sys.exit(main())
