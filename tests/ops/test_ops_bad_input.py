"""Law: a bad argument raises an error that names it, quotes it and says what was expected, and changes nothing.

An explicit backend is never replaced by another one.
"""

import subprocess
import sys

import pytest
import torch

import gossamer as gs

X = torch.eye(4)
P = gs.Pattern.from_mask(X.bool(), (2, 2))
V = P.pack(X)
META = P.to("meta")

CALLS = {
    "x type": (lambda: gs.detect([[1.0]]), TypeError, "x must be a tensor, got list"),
    "x dim": (lambda: gs.detect(X[0]), ValueError, r"x must have 2 dimensions .* got shape \(4,\)"),
    "x layout": (lambda: gs.detect(X.to_sparse()), TypeError, "x must be a strided .* got layout torch.sparse_coo"),
    "x dtype": (lambda: gs.detect(X.to(torch.complex64)), TypeError, "x must be a float.* got torch.complex64"),
    "x float8": (lambda: gs.detect(X.to(torch.float8_e5m2)), TypeError, "x must be a float.* got torch.float8_e5m2"),
    "tile": (lambda: gs.detect(X, (0, 2)), ValueError, r"tile must be .* at least 1, got \(0, 2\)"),
    "tile type": (lambda: gs.detect(X, 2), TypeError, "tile must be a pair of ints, got 2"),
    "capacity": (lambda: gs.detect(X, capacity=-4), ValueError, "capacity must be at least 0, got -4"),
    "capacity type": (lambda: gs.detect(X, capacity="4"), TypeError, "capacity must be an int or None, got '4'"),
    "overflow": (lambda: gs.detect(X, overflow="trim"), ValueError, "overflow must be .* got 'trim'"),
    "detect backend": (lambda: gs.detect(X, backend="cuda"), ValueError, "backend must be .* got 'cuda'"),
    "detect backend type": (lambda: gs.detect(X, backend=["cpu"]), ValueError, r"backend must be .* got \['cpu'\]"),
    "detect device": (
        lambda: gs.detect(X, backend="triton"),
        ValueError,
        "backend='triton' needs x on cuda, got x on cpu",
    ),
    "gather type": (lambda: gs.ops.gather(None, P), TypeError, "x must be a tensor, got NoneType"),
    "gather shape": (lambda: gs.ops.gather(X[:3], P), ValueError, r"x must have .* \(4, 4\), got \(3, 4\)"),
    "gather batch": (
        lambda: gs.ops.gather(X[None], P),
        ValueError,
        r"x must have 2 dimensions .* got shape \(1, 4, 4\)",
    ),
    "gather dtype": (lambda: gs.ops.gather(X + 0j, P), TypeError, "x must have a real dtype .* got torch.complex64"),
    "gather device": (lambda: gs.ops.gather(X, META), ValueError, "x must be on the pattern's device meta, got cpu"),
    "gather backend": (lambda: gs.ops.gather(X, P, backend="gpu"), ValueError, "backend must be .* got 'gpu'"),
    "gather triton": (lambda: gs.ops.gather(X, P, backend="triton"), ValueError, "needs x on cuda, got x on cpu"),
    "scatter type": (lambda: gs.ops.scatter(3, P), TypeError, "values must be a tensor, got int"),
    "scatter shape": (lambda: gs.ops.scatter(X, P), ValueError, r"values .* = \(2, 2, 2\), got \(4, 4\)"),
    "scatter slots": (lambda: gs.ops.scatter(V[:1], P), ValueError, r"values .* = \(2, 2, 2\), got \(1, 2, 2\)"),
    "scatter dtype": (
        lambda: gs.ops.scatter(V.to(torch.complex128), P),
        TypeError,
        "values must have a real dtype .* got torch.complex128",
    ),
    "scatter device": (lambda: gs.ops.scatter(V.to("meta"), P), ValueError, "values must be on .* cpu, got meta"),
    "scatter triton": (lambda: gs.ops.scatter(V, P, backend="triton"), ValueError, "needs values on cuda"),
}


@pytest.mark.parametrize("name", CALLS)
def test_errors_name_the_argument(name):
    call, error, message = CALLS[name]
    before = [t.clone() for t in (X, V, P.offsets, P.indices)]
    with pytest.raises(error, match=message):
        call()
    assert all(torch.equal(a, b) for a, b in zip(before, (X, V, P.offsets, P.indices), strict=True))


def test_keywords_stay_keywords():
    with pytest.raises(TypeError, match="positional"):
        gs.detect(X, (2, 2), False)
    with pytest.raises(TypeError, match="positional"):
        gs.ops.gather(X, P, "cpu")


def run(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


@pytest.mark.parametrize("hidden", ["gossamer._native", "gossamer.kernels.cpu"])
def test_missing_kernels_are_named_and_nothing_replaces_them(hidden):
    code = f"""
import sys, torch
sys.modules[{hidden!r}] = None
import gossamer as gs
x = torch.eye(4)
assert gs.detect(x, backend="reference").nnz == 4
for backend in (None, "cpu"):
    try:
        gs.detect(x, backend=backend)
    except RuntimeError as error:
        assert "gossamer.ops.detect" in str(error) and "gossamer._native" in str(error), error
    else:
        raise SystemExit("something else computed it")
"""
    done = run(code)
    assert done.returncode == 0, done.stdout + done.stderr


def test_using_the_ops_on_the_cpu_imports_nothing_optional():
    code = """
import sys, torch
import gossamer as gs
x = torch.eye(4)
p = gs.detect(x, (2, 2))
gs.ops.scatter(gs.ops.gather(x, p), p)
gs.testing.CASES
loaded = {"triton", "hypothesis", "transformers", "torch._dynamo", "torch._inductor"} & set(sys.modules)
assert not loaded, loaded
"""
    done = run(code)
    assert done.returncode == 0, done.stdout + done.stderr
