"""fan_in_rewire: rows of fixed fan-in lose their weakest connections and get as many others, in place.

No dense mask, no dense gradient: a row's free inputs are numbered by rank, distinct ranks are drawn, and a rank is
turned into its input by the row's own sorted indices. Random numbers come from (seed, step, row), so the result depends
on neither threads nor blocks nor devices, and shares of the labels are rewired as the whole would be.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from gossamer.ops.checks import INT64, check_flag, check_integer, check_number, described
from gossamer.ops.fan_in.arguments import INDICES, check_labels, check_tensor, pair_of
from gossamer.ops.registration import Backend, check_backend, register
from gossamer.ops.transforms import check_transforms

Scope = Literal["row", "global"]

fan_in_rewire_on = register(
    "fan_in_rewire",
    "(Tensor(a!) values, Tensor(b!) indices, Tensor(c!)[] states, Tensor(d!)? ages, Tensor? candidates, "
    "Tensor? scores, int cols, int group, int drop, float threshold, bool everywhere, bool avoid_dropped, "
    "int min_age, float init, int seed, int step, int first) -> Tensor",
    lambda values, *_: values.new_empty((), dtype=torch.int64),
)
fan_in_draw_on = register(
    "fan_in_draw",
    "(Tensor(a!) out, Tensor? indices, int cols, int seed, int step, int first) -> ()",
    module="fan_in_rewire",
)


def fan_in_rewire(
    values: Tensor,
    indices: Tensor,
    width: int,
    *,
    fraction: float | None = None,
    threshold: float | None = None,
    scope: Scope = "row",
    states: list[Tensor] | None = None,
    ages: Tensor | None = None,
    min_age: int = 0,
    candidates: tuple[Tensor, Tensor] | None = None,
    avoid_dropped: bool = True,
    init: float = 0.0,
    group: int = 1,
    seed: int = 0,
    step: int = 0,
    first: int = 0,
    backend: Backend | None = None,
) -> Tensor:
    """Drop the weakest connections of a classifier and grow others, which a row does not have yet. In place.

    The weakest have the smallest |value| (of labels that share indices the smallest mean); of equal ones those in lower
    slots go first, and NaN goes last. What grows is drawn uniformly among the inputs that a row does not have. Rows
    stay sorted, and what stays keeps its index, value and state to the last bit.

    Args:
        values: float32 or bfloat16 [labels, k]; written.
        indices: uint16 or int32 [ceil(labels / group), k], each row ascending; written.
        width: how many inputs there are.
        fraction: share of the connections that goes, in [0, 1]: of each row, or with scope "global" of all together, in
            which case rows lose more or fewer. Rounded to the nearest number, halves to even.
        threshold: in place of `fraction`, all connections with a smaller |value| go.
        scope: "row" or "global", of `fraction`.
        states: float32[labels, k] each, at most two: what an optimizer keeps for each value, 0 for a new one; written.
        ages: uint8[rows of indices, k]: how many rewirings each connection has stayed, up to 255; written.
        min_age: connections of fewer rewirings are protected, which needs `ages`.
        candidates: (indices, scores float32), each [rows of indices, n]: grow those with the highest |score| instead,
            for example a gradient. Ascending and none of them connected; see `fan_in_candidates`. No more go than n.
        avoid_dropped: what just went does not come back; at most width - k connections of a row go then.
        init: new values are uniform in [-init, init]; 0 for zeros.
        group: how many labels share a row of indices.
        seed, step: choose the random numbers, together with the number of the row.
        first: the number of the first label, a multiple of group, where these are a share of more.
        backend: None for the kernels of values' device; "cpu", "triton" or "reference" to insist.

    Returns:
        int64[]: how many connections of rows of indices were replaced.

    Raises:
        TypeError, ValueError: naming the argument; nothing was written then.

    Source: SET (arXiv 1707.04780) per row, as in SPARTEX (arXiv 2411.03171); distinct ranks by Floyd's algorithm
    (Bentley and Floyd, "A sample of brilliance", CACM 30(9), 1987).

    >>> values = torch.tensor([[3.0, 0.1, 2.0]])
    >>> indices = torch.tensor([[0, 1, 3]], dtype=torch.uint16)
    >>> int(fan_in_rewire(values, indices, 5, fraction=1 / 3))
    1
    >>> indices.tolist()[0] in ([0, 2, 3], [0, 3, 4]), sorted(values[0].tolist())
    (True, [0.0, 2.0, 3.0])
    """
    check_transforms("gossamer.ops.fan_in_rewire", values)
    check_labels(values, indices, None, group)
    check_backend(backend, "values", values)
    rows, k = indices.shape
    check_integer("width", width, k, 2**31, "the connections of a row")
    drop, bound = _amount(fraction, threshold, scope, rows, k)
    states = [] if states is None else states
    if not isinstance(states, (list, tuple)) or len(states) > 2:
        found = len(states) if isinstance(states, (list, tuple)) else type(states).__name__
        raise ValueError(f"states must be a list of at most two tensors, got {found}")
    for at, state in enumerate(states):
        _check_like(f"states[{at}]", state, values, torch.float32)
    if ages is not None:
        _check_like("ages", ages, indices, torch.uint8)
    check_integer("min_age", min_age, 0, 255)
    if min_age and ages is None:
        raise ValueError(f"min_age must be 0 without ages, got {min_age}")
    chosen = scores = None
    if candidates is not None:
        chosen, scores = pair_of("candidates", candidates, "indices, scores")
        check_tensor("candidates[0]", chosen, (indices.dtype,), 2, values.device)
        if chosen.shape[0] != rows:
            raise ValueError(f"candidates must have {rows} rows, as indices, got {chosen.shape[0]}")
        _check_like("candidates[1]", scores, chosen, torch.float32)
    init = check_number("init", init, 0)
    _check_first(first, group)
    _check_draws(seed, step)
    check_flag("avoid_dropped", avoid_dropped)
    return fan_in_rewire_on(backend)(
        values, indices, states, ages, chosen, scores, width, group, drop, bound, scope == "global", avoid_dropped,
        min_age, init, seed, step, first,
    )  # fmt: skip


def _amount(fraction: float | None, threshold: float | None, scope: Scope, rows: int, k: int) -> tuple[int, float]:
    """(connections that go, of each row or of all, or -1; the magnitude below which they go)."""
    if scope not in ("row", "global"):
        raise ValueError(f"scope must be 'row' or 'global', got {scope!r}")
    if (fraction is None) == (threshold is None):
        raise ValueError(f"one of fraction and threshold must be given, got {fraction} and {threshold}")
    if fraction is not None:
        return round(check_number("fraction", fraction, 0, 1) * k * (rows if scope == "global" else 1)), 0.0
    assert threshold is not None
    return -1, check_number("threshold", threshold, 0)


def _check_first(first: int, group: int) -> None:
    check_integer("first", first, 0)
    if first % group:
        raise ValueError(f"first must be a multiple of group {group}, got {first}")


def _check_draws(seed: int, step: int) -> None:
    check_integer("seed", seed, *INT64)
    check_integer("step", step, *INT64)


def _check_like(name: str, x: Tensor, other: Tensor, dtype: torch.dtype) -> None:
    check_tensor(name, x, (dtype,), 2, other.device)
    if x.shape != other.shape:
        raise ValueError(f"{name} must have shape {tuple(other.shape)}, got {tuple(x.shape)}")


def fan_in_indices(
    labels: int,
    width: int,
    k: int,
    *,
    seed: int = 0,
    group: int = 1,
    first: int = 0,
    out: Tensor | None = None,
    device: torch.device | str | None = None,
    backend: Backend | None = None,
) -> Tensor:
    """The first connections of a classifier: k of `width` inputs for each row, every set as likely as any other.

    Nothing beside the result is allocated. A row's numbers come from (seed, number of the row).

    Args:
        labels: how many labels; each `group` of them share a row.
        width: inputs there are, at most 2**31.
        k: inputs of a label, at most width.
        first: the number of the first label, a multiple of group, where these are a share of more.
        out: a contiguous tensor to write into, of the shape and dtype of the result.
        device: where the result lies.
        backend: None for the kernels of the device; "cpu", "triton" or "reference" to insist.

    Returns:
        [ceil(labels / group), k], each row ascending, uint16 if width is at most 65536, else int32.

    Raises:
        TypeError, ValueError: naming the argument.

    >>> indices = fan_in_indices(4, 768, 16)
    >>> indices.shape, indices.dtype, bool((indices.int().diff(dim=1) > 0).all())
    (torch.Size([4, 16]), torch.uint16, True)
    """
    for name, number, least in (("labels", labels, 0), ("k", k, 0), ("group", group, 1), ("first", first, 0)):
        check_integer(name, number, least)
    check_integer("width", width, k, 2**31, "the connections of a row")
    _check_first(first, group)
    check_integer("seed", seed, *INT64)
    shape, dtype = (-(-labels // group), k), torch.uint16 if width <= 65536 else torch.int32
    if out is None:
        out = torch.empty(shape, dtype=dtype, device=device)
    elif (
        not isinstance(out, Tensor)
        or tuple(out.shape) != shape
        or out.dtype not in INDICES
        or (out.dtype == torch.uint16 and width > 65536)
    ):
        raise ValueError(f"out must be {dtype}{list(shape)}, got {described(out)}")
    check_backend(backend, "out", out)
    fan_in_draw_on(backend)(out, None, width, seed, 0, first // group)
    return out


def fan_in_candidates(
    indices: Tensor, width: int, n: int, *, seed: int = 0, step: int = 0, first: int = 0, backend: Backend | None = None
) -> Tensor:
    """n inputs that each row does not read yet, drawn uniformly, ascending: candidates of `fan_in_rewire`.

    Args:
        indices: uint16 or int32 [rows, k], each row ascending.
        width: inputs there are, at least k + n.
        n: how many of each row.
        seed, step: choose the random numbers, together with the number of the row; first is that of the first row.
        backend: None for the kernels of indices' device; "cpu", "triton" or "reference" to insist.

    Returns:
        [rows, n], of the dtype of indices.

    Raises:
        TypeError, ValueError: naming the argument.

    >>> fan_in_candidates(torch.tensor([[0, 2]], dtype=torch.uint16), 4, 2).tolist()
    [[1, 3]]
    """
    check_transforms("gossamer.ops.fan_in_candidates", indices)
    check_tensor("indices", indices, INDICES, 2)
    check_integer("n", n, 0)
    check_integer("width", width, indices.shape[1] + n, 2**31, "the connections of a row and n")
    check_integer("first", first, 0)
    _check_draws(seed, step)
    check_backend(backend, "indices", indices)
    out = torch.empty((indices.shape[0], n), dtype=indices.dtype, device=indices.device)
    fan_in_draw_on(backend)(out, indices, width, seed, step, first)
    return out
