"""fan_in_topk: the k best labels of each row of a batch, without the scores of all.

    score[b, l] = bias[l] + sum over j of values[l, j] * x[b, indices[l, j]]

A row keeps its k best while the labels pass by. Memory is that of x and of batch * k results for each thread, however
many labels there are.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gossamer.ops.checks import check_integer
from gossamer.ops.fan_in.arguments import check_labels, check_tensor, pair_of
from gossamer.ops.registration import Backend, check_backend, register
from gossamer.ops.together import check_devices
from gossamer.ops.transforms import check_transforms


def _fake(x: Tensor, values: Tensor, indices: Tensor, bias: Tensor | None, group: int, best: int, *_: object) -> object:
    shape = x.shape[0], best
    return x.new_empty(shape), x.new_empty(shape, dtype=torch.int64)


fan_in_topk_on = register(
    "fan_in_topk",
    "(Tensor x, Tensor values, Tensor indices, Tensor? bias, int group, int best, int first, Tensor? offsets, "
    "Tensor? ids, Tensor? always) -> (Tensor, Tensor)",
    _fake,
    strided=(0,),
)


def fan_in_topk(
    x: Tensor,
    values: Tensor,
    indices: Tensor,
    k: int = 5,
    *,
    bias: Tensor | None = None,
    group: int = 1,
    exclude: tuple[Tensor, Tensor] | None = None,
    never: Tensor | None = None,
    first: int = 0,
    backend: Backend | None = None,
) -> tuple[Tensor, Tensor]:
    """The k labels with the highest scores for each row of x, best first; equal scores in order of label.

    Filters apply before the choice, so that k labels are found whatever is excluded. The result does not depend on the
    number of threads, nor on the other rows of x. It has no gradient.

    Args:
        x: float32[batch, cols], row-major or a transposed view.
        values: float32 or bfloat16 [labels, fan_in].
        indices: uint16 or int32 [ceil(labels / group), fan_in], columns of x.
        k: labels wanted for each row, at least 1.
        bias: float32[labels], or None.
        group: how many labels share a row of indices.
        exclude: (offsets int64[batch + 1], ids int64[n]): row b does not get ids[offsets[b] : offsets[b + 1]], which
            ascend. Ids of no label are fine.
        never: int64[n], ascending: labels that no row gets.
        first: the id of the first label, where these are a share of more.
        backend: None for the kernels of x's device; "cpu", "triton" or "reference" to insist.

    Returns:
        scores float32[batch, k] and ids int64[batch, k]; -inf and -1 where fewer than k labels were left.

    Raises:
        TypeError, ValueError: naming the argument; also where a score is NaN, which has no rank.

    Source: exact search as in SPARTEX (arXiv 2411.03171), in blocks of labels as in ELMO (arXiv 2510.11168).

    >>> values, indices = torch.tensor([[1.0], [2.0], [2.0]]), torch.tensor([[0], [1], [1]], dtype=torch.uint16)
    >>> scores, ids = fan_in_topk(torch.tensor([[5.0, 2.0]]), values, indices, k=2)
    >>> ids.tolist(), scores.tolist()
    ([[0, 1]], [[5.0, 4.0]])
    >>> fan_in_topk(torch.tensor([[5.0, 2.0]]), values, indices, k=2, never=torch.tensor([0]))[1].tolist()
    [[1, 2]]
    """
    check_transforms("gossamer.ops.fan_in_topk", x, values, bias)
    check_labels(values, indices, bias, group)
    check_tensor("x", x, (torch.float32,), 2, values.device)
    check_integer("k", k, 1)
    check_integer("first", first, 0)
    check_backend(backend, "x", x)
    offsets = ids = None
    if exclude is not None:
        offsets, ids = pair_of("exclude", exclude, "offsets, ids")
        check_tensor("exclude[0]", offsets, (torch.int64,), 1, values.device)
        check_tensor("exclude[1]", ids, (torch.int64,), 1, values.device)
        if offsets.numel() != x.shape[0] + 1:
            raise ValueError(f"exclude must have {x.shape[0] + 1} offsets, one more than rows, got {offsets.numel()}")
        _check_lists("exclude", offsets, ids)
    if never is not None:
        check_tensor("never", never, (torch.int64,), 1, values.device)
        _check_lists("never", torch.tensor([0, never.numel()], device=never.device), never)
    detached = (None if bias is None else bias.detach()), group, k, first, offsets, ids, never
    return fan_in_topk_on(backend)(x.detach(), values.detach(), indices, *detached)


def _check_lists(name: str, offsets: Tensor, ids: Tensor) -> None:
    """Refuse offsets that are none of these ids, and a list that does not ascend."""
    if torch.compiler.is_compiling():
        return
    ends = offsets.tolist()
    if ends[0] != 0 or ends[-1] > ids.numel() or bool((offsets.diff() < 0).any()):
        raise ValueError(f"{name} must have offsets from 0 to at most {ids.numel()} that never fall, got {ends[:16]}")
    starts = torch.zeros(ids.numel() + 1, dtype=torch.bool, device=ids.device)
    starts[offsets] = True
    wrong = ((ids[1:] <= ids[:-1]) & ~starts[1:-1])[: max(ends[-1] - 1, 0)].nonzero()
    if wrong.numel():
        at = int(wrong[0])
        raise ValueError(
            f"{name} must list ids of a row in ascending order, each once, got {int(ids[at])} before {int(ids[at + 1])}"
        )


def merge_topk(parts: Sequence[tuple[Tensor, Tensor]], k: int) -> tuple[Tensor, Tensor]:
    """The k best of what several calls found, each with its own labels: as one call with the labels of all.

    Args:
        parts: (scores[batch, any], ids[batch, any]) of each; -inf and -1 where one had too few.
        k: labels wanted for each row, at least 1.

    Returns:
        (scores[batch, k], ids[batch, k]), best first, equal scores in order of label.

    Raises:
        TypeError, ValueError: naming the argument: no parts, parts of different batches, k below 1.

    >>> a = torch.tensor([[3.0, 1.0]]), torch.tensor([[4, 0]])
    >>> b = torch.tensor([[3.0, -torch.inf]]), torch.tensor([[2, -1]])
    >>> [each.tolist() for each in merge_topk([a, b], 3)]
    [[[3.0, 3.0, 1.0]], [[2, 4, 0]]]
    """
    check_integer("k", k, 1)
    for at, part in enumerate(parts):
        names = tuple(f"parts[{at}][{one}]" for one in range(2))
        for name, x in zip(names, pair_of(f"parts[{at}]", part, "scores, ids"), strict=True):
            if not isinstance(x, Tensor):
                raise TypeError(f"{name} must be a tensor, got {type(x).__name__}")
        check_devices(("parts[0][0]", *names), (parts[0][0], *part))
    shapes = [(tuple(scores.shape), tuple(ids.shape)) for scores, ids in parts]
    if not shapes or any(a != b or len(a) != 2 or a[0] != shapes[0][0][0] for a, b in shapes):
        raise ValueError(f"parts must be pairs of matrices of one batch, at least one pair, got shapes {shapes}")
    scores, ids = torch.cat([part[0] for part in parts], 1), torch.cat([part[1] for part in parts], 1)
    # By label, then stably by score, then stably those that are none to the end.
    order = torch.argsort(ids, dim=1, stable=True)
    order = order.gather(1, torch.argsort(scores.gather(1, order), dim=1, descending=True, stable=True))
    order = order.gather(1, torch.argsort((ids.gather(1, order) < 0).to(torch.uint8), dim=1, stable=True))[:, :k]
    pad = torch.nn.functional.pad
    short = k - order.shape[1]
    return pad(scores.gather(1, order), (0, short), value=-torch.inf), pad(ids.gather(1, order), (0, short), value=-1)
