"""Calls functions of Triton kernels, interpreted in this process, as asked on standard input: (module, name, args).

Triton reads TRITON_INTERPRET when a kernel is defined, so a process is either interpreted or not.
"""

import contextlib
import importlib
import importlib.util
import os
import sys
import traceback
from pathlib import Path

import message
import pytest
import triton.language as tl
from triton.runtime import interpreter


def multiply_bfloat16() -> None:
    """The interpreter keeps a bfloat16 as the integer of its bits, and `tl.dot` there multiplies those integers."""
    dot = interpreter.InterpreterBuilder.create_dot

    def wide(x):
        if x.dtype.scalar != tl.bfloat16:
            return x
        return interpreter.TensorHandle((x.data.astype("uint32") << 16).view("float32"), tl.float32)

    interpreter.InterpreterBuilder.create_dot = lambda self, a, b, *rest: dot(self, wide(a), wide(b), *rest)


def patch_once() -> None:
    """The interpreter replaces the language's functions in every call of a kernel's function, which takes longer than
    most calls, and restores them after a launch. In this process they stay replaced, for each module that has kernels.
    """
    patch = interpreter._patch_lang
    patched = set()

    def once(function):
        module = function.__globals__["__name__"]
        if module not in patched:
            patched.add(module)
            patch(function)
        return interpreter._LangPatchScope()

    interpreter._patch_lang = once


def poison_memory() -> None:
    """As in every test of this project."""
    spec = importlib.util.spec_from_file_location("conftest", Path(__file__).parents[1] / "conftest.py")
    conftest = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(conftest)
    conftest.poison_empty(pytest.MonkeyPatch())


def answer(module, name, args):
    try:
        return True, getattr(importlib.import_module(module), name)(*args)
    except (TypeError, ValueError) as error:
        return False, error
    except Exception:
        return False, RuntimeError(traceback.format_exc())


if __name__ == "__main__":
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a kernel prints must not get between the answers
    multiply_bfloat16()
    patch_once()
    poison_memory()
    with contextlib.suppress(EOFError):
        while True:
            message.send(answers, answer(*message.receive(sys.stdin.buffer)))
