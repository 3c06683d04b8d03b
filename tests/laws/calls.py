"""Calls a kernel, here or in the process that interprets."""

from importlib import import_module


def results(function, args, writes=()):
    """What a function returns, as a list, and what the arguments at the positions `writes` hold after it."""
    returned = function(*args)
    returned = [] if returned is None else list(returned) if isinstance(returned, (tuple, list)) else [returned]
    return [*returned, *(args[at] for at in writes)]


def kernel_results(module, op, args, writes):
    return results(getattr(import_module(module), op), args, writes)
