"""Heads on disk and parts of them: what a head consists of, by name, and a head made of that."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from gossamer.xmc.heads import base_head, store
from gossamer.xmc.heads.store import DTYPES, Stored, StoreError

Head = TypeVar("Head", bound=nn.Module)
"""A `FusedHead`: a module whose attributes are its settings and whose buffers are the rest of it."""
SETTINGS = (
    "width", "labels", "fan_in", "optimizer", "loss", "group", "seed", "betas", "eps", "weight_decay", "first_label",
)  # fmt: skip
BY_ROW = ("indices", "ages")  # with a row for each group of labels


def settings_of(head: nn.Module) -> dict[str, Any]:
    """The arguments that make a head like this one."""
    plain = {name: getattr(head, name) for name in SETTINGS}
    buffers = dict(head.named_buffers())
    return {**plain, "dtype": str(buffers["values"].dtype).removeprefix("torch."), "bias": "bias" in buffers}


def save(head: nn.Module, directory: str | os.PathLike[str]) -> Path:
    return store.save(directory, settings_of(head), dict(head.named_buffers()))


def load(
    cls: type[Head],
    directory: str | os.PathLike[str],
    *,
    mmap: bool,
    verify: bool,
    begin: int = 0,
    end: int | None = None,
) -> Head:
    """The labels [begin, end) of what is stored, which may be in several shares."""
    shares = store.load_shares(directory, mmap=mmap, verify=verify)
    total = shares[-1][1]
    end = total if end is None else end
    whole = begin == 0 and end == total
    if len(shares) == 1 and whole:
        return made(cls, shares[0][2], directory)
    parts = [(share, max(begin, a) - a, min(end, b) - a) for a, b, share in shares if a < end and b > begin]
    first, group = parts[0][0], group_of(shares[0][2], directory)
    if any(a % group for a in (begin, *(a for a, _, _ in shares))):
        raise StoreError(f"{directory}: shares must begin at multiples of the group of {group} labels")
    tensors = {"steps": first.tensors["steps"]} if "steps" in first.tensors else {}
    for name in first.tensors:
        if name != "steps":
            if any(name not in share.tensors for share, _, _ in parts):
                raise StoreError(f"{directory}: a share has no {name}, which others have")
            tensors[name] = _joined([_rows(share.tensors[name], a, b, group, name) for share, a, b in parts])
    settings = {**first.settings, "labels": end - begin, "first_label": begin}
    return made(cls, Stored(settings, tensors), directory)


def _rows(x: Tensor, begin: int, end: int, group: int, name: str) -> Tensor:
    return x[begin // group : -(-end // group)] if name in BY_ROW else x[begin:end]


def _joined(parts: list[Tensor]) -> Tensor:
    """Rows one after the other; torch joins no uint16, so bytes are joined."""
    if len(parts) == 1:
        return parts[0]
    rows = sum(len(part) for part in parts)
    joined = torch.cat([store.bytes_of(part.contiguous()) for part in parts])
    return joined.view(parts[0].dtype).view(rows, *parts[0].shape[1:])


def made(cls: type[Head], stored: Stored, where: str | os.PathLike[str]) -> Head:
    """A head of these settings whose buffers are these tensors, no copies of them."""
    settings = dict(stored.settings)
    try:
        missing = {*SETTINGS, "dtype", "bias"} - settings.keys()
        if missing:
            raise ValueError(f"the settings lack {', '.join(sorted(missing))}")
        dtype, betas = DTYPES[settings.pop("dtype")], tuple(settings.pop("betas"))
        with torch.device("meta"):
            head = cls(dtype=dtype, betas=betas, **settings)
    except (KeyError, TypeError, ValueError) as error:
        raise StoreError(f"{where} holds no head of this version: {error}") from error
    wanted: dict[str, Tensor] = dict(head.named_buffers())
    if "ages" in stored.tensors:
        wanted["ages"] = torch.empty(wanted["indices"].shape, dtype=torch.uint8, device="meta")
    if wanted.keys() != stored.tensors.keys():
        raise StoreError(f"{where} has the arrays {sorted(stored.tensors)}, expected {sorted(wanted)}")
    for name, expected in wanted.items():
        found = stored.tensors[name]
        if found.shape != expected.shape or found.dtype != expected.dtype:
            raise StoreError(
                f"{where} has {name} {found.dtype}{list(found.shape)}, expected {expected.dtype}{list(expected.shape)}"
            )
        nn.Module.__setattr__(head, name, found)
    return head


def subset(head: Head, labels: Tensor) -> Head:
    """A head with copies of some labels, in this order; each has inputs of its own."""
    settings = settings_of(head)
    labels, group = checked_labels(labels, settings["labels"]), settings["group"]
    tensors = {
        name: x.clone() if name == "steps" else _picked(x, labels // group if name in BY_ROW else labels)
        for name, x in head.named_buffers()
    }
    settings |= {"labels": labels.numel(), "group": 1, "first_label": 0}
    return made(type(head), Stored(settings, tensors), "the subset")


def checked_labels(labels: Tensor, count: int) -> Tensor:
    """The labels of a subset.

    Raises:
        TypeError, ValueError: they are no int64[n], none, or one is not there.
    """
    if not isinstance(labels, Tensor) or labels.dtype != torch.int64 or labels.dim() != 1:
        what = f"{labels.dtype}{list(labels.shape)}" if isinstance(labels, Tensor) else type(labels).__name__
        raise TypeError(f"labels must be int64[n], got {what}")
    outside = labels[(labels < 0) | (labels >= count)]
    if not labels.numel() or outside.numel():
        wrong = f"{int(outside[0])}" if outside.numel() else "none"
        raise ValueError(f"labels must be at least 0 and below {count}, at least one, got {wrong}")
    return labels


def _picked(x: Tensor, rows: Tensor) -> Tensor:
    wide = x.view(torch.int16) if x.dtype == torch.uint16 else x  # torch picks no rows of uint16
    return wide[rows.to(x.device)].view(x.dtype)


def size_of(directory: str | os.PathLike[str]) -> tuple[int, int]:
    """(labels, labels that share inputs) of a stored head, which may be in shares."""
    shares = store.load_shares(directory)
    return shares[-1][1], group_of(shares[0][2], directory)


def group_of(stored: Stored, where: str | os.PathLike[str]) -> int:
    group = stored.settings.get("group")
    if not isinstance(group, int) or group < 1:
        raise StoreError(f"{where}: group is {group!r}, expected a number from 1")
    return group


def save_composite(
    head: Any,
    directory: str | os.PathLike[str],
    settings: dict[str, Any],
    tensors: dict[str, Tensor],
    parts: Sequence[base_head.Head],
) -> Path:
    """Write a head that consists of heads: each in a folder of its own, and then, at once, that they are one.

    Args:
        head: its `kind` says what it is, its `ranks` which processes save it together.
    """
    root, ranks = Path(directory), head.ranks
    ranks.together(lambda: store.check_ours(root), first=True)  # before parts are written that nothing would name
    token = ranks.same(secrets.token_hex(6))
    names = [f"part-{token}-{at}" for at in range(len(parts))]
    for name, part in zip(names, parts, strict=True):
        part.save(root / name)
    record = {**settings, "kind": head.kind, "parts": names}
    ranks.together(lambda: store.save(root, record, tensors, folders=names), first=True)
    return root


def parts_of(stored: Stored, where: str | os.PathLike[str]) -> list[Path]:
    """The folders of the heads that a stored head consists of.

    Raises:
        StoreError: it names none.
    """
    names = stored.settings.get("parts")
    if not isinstance(names, list) or not names or not all(re.fullmatch(store.FOLDER, str(name)) for name in names):
        raise StoreError(f"{where}: parts are {names!r:.80}, expected folders named part-<token>-<number>")
    return [Path(where) / name for name in names]
