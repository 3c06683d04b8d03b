"""Calls a kernel, here or in the process that interprets."""

from importlib import import_module

import pytest


def results(function, args, writes=()):
    """What a function returns, as a list, and what the arguments at the positions `writes` hold after it."""
    returned = function(*args)
    returned = [] if returned is None else list(returned) if isinstance(returned, (tuple, list)) else [returned]
    return [*returned, *(args[at] for at in writes)]


def kernel_results(module, op, args, writes):
    return results(getattr(import_module(module), op), args, writes)


def results_in_blocks(module, sizes, op, args, writes):
    """The same with other constants in the module: sizes of blocks so small that a test has several."""
    with pytest.MonkeyPatch.context() as patch:
        for name, size in sizes.items():
            patch.setattr(import_module(module), name, size)
        return kernel_results(module, op, args, writes)
