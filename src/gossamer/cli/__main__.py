"""`gossamer COMMAND`: choose the command, and turn errors into one line."""

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

from gossamer import extras
from gossamer.cli.mistakes import unknown
from gossamer.cli.stop import Stopped

_COMMANDS = {
    "What it gains": {
        "tour": "seven kinds of dynamic sparsity on this machine, and where they lose",
        "profile": "which of them would pay for your model, measured on your data: MODEL DATA",
    },
    "A network that is too large, labels that are too many": {
        "train": "train a network dense and sparse, remove channels, measure, write a report",
        "xmc": "extreme classification: make a data set, train, evaluate, predict",
    },
    "Language models": {
        "model": "fetch a small one that the other commands take by its name",
        "generate": "complete a text of any length, or answer a question about it",
        "serve": "OpenAI's API on this machine, with a page to look at",
        "calibrate": "measure which heads need the first and last tokens only",
        "route": "tokens that choose their layers: measure, train, evaluate",
    },
    "This machine": {
        "doctor": "what this machine and this installation can do, and why not",
        "tune": "time dense and sparse products once, for the planner's choices",
        "bench": "measure a suite, each row beside its baselines",
        "version": "the version",
    },
}
"""What a newcomer has to do -> the commands for it."""

_HELP = """usage: gossamer COMMAND [flags]

Zeros that are known only at run time become less time and less memory.

Try first
  gossamer doctor                     is everything here?
  gossamer tour                       seven short runs beside their dense baselines, one page
  gossamer train                      handwritten digits: a smaller network, a report; a minute
  gossamer model smollm2              fetch a language model, once; then
  gossamer generate smollm2 --prompt "What is sparsity?"
{groups}
gossamer COMMAND --help lists the flags of a command.
"""

_PLAIN = ("profile", "bench", "tune", "model", "generate", "calibrate", "serve")
"""Commands of a module of their name, which has their flags and `run`."""

_BARE = {
    "doctor": "usage: gossamer doctor\n\nSay what this machine and this installation can do: instruction set, threads, "
    "GPU, versions,\nwhich kernels run and why others do not, which extras are installed. It takes no flags.\n",
    "version": "usage: gossamer version\n\nPrint the version. It takes no flags.\n",
}
"""Commands without flags, which need no extra package -> their help."""


def _help() -> str:
    groups = ""
    for task, commands in _COMMANDS.items():
        groups += f"\n{task}\n" + "".join(f"  {name:<9} {about}\n" for name, about in commands.items())
    return _HELP.format(groups=groups)


def _run(argv: Sequence[str]) -> None:
    command, rest = (argv[0], list(argv[1:])) if argv else ("--help", [])
    if command in ("-h", "--help", "help"):
        print(_help(), end="")
    elif command in ("doctor", "version", "--version"):
        _bare(command.lstrip("-"), rest)
    elif command == "train":
        from gossamer.cli.flags import needs_tyro

        needs_tyro()
        from gossamer.cli.train.command import main as train

        train(rest)
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
        names = [name for commands in _COMMANDS.values() for name in commands]
        raise ValueError(f"{unknown('command', command, names)} (gossamer --help tells what each is for)")


def _bare(command: str, rest: list[str]) -> None:
    """`gossamer doctor` and `gossamer version`."""
    if rest and rest[0] in ("-h", "--help"):
        print(_BARE[command], end="")
    elif rest:
        raise ValueError(f"gossamer {command} takes no flags; {rest[0]!r} was given")
    elif command == "version":
        import gossamer

        print(gossamer.__version__)
    else:
        from gossamer import doctor

        print(doctor.text(doctor.report()))


_OUTPUT = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What only a write can meet."""


def _fail(error: BaseException, argv: Sequence[str]) -> int:
    """Say what is wrong in one line. Only errors of kinds the library raises about its input come here."""
    if "--debug" in argv:
        traceback.print_exception(error)
    said = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, OSError) and error.strerror:  # without its number, which str() puts before it
        said = error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"
    if isinstance(error, OSError) and error.errno in _OUTPUT and error.strerror == os.strerror(error.errno):
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
        return 128 + signal.SIGINT
    except BrokenPipeError:
        # The reader of a pipe went away (`gossamer doctor | head`); Python would complain again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except ModuleNotFoundError as error:
        return _fail(extras.explained(error, f"gossamer {argv[0]}", extras.COMMANDS.get(argv[0])), argv)
    except (ValueError, TypeError, ArithmeticError, RuntimeError, OSError, ImportError, MemoryError) as error:
        return _fail(error, argv)
    return 0


if __name__ == "__main__":
    sys.exit(main())
