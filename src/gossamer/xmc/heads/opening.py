"""A head of any kind from what it saved."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from gossamer.ranks import Ranks
from gossamer.xmc.heads import saved, store
from gossamer.xmc.heads.base_head import Head
from gossamer.xmc.heads.head import FusedHead
from gossamer.xmc.heads.joined import JoinedHead
from gossamer.xmc.heads.sharded import ShardedHead
from gossamer.xmc.heads.wide import WideHead

COMPOSITES: dict[str, Any] = {each.kind: each for each in (JoinedHead, WideHead)}


@torch.inference_mode(False)
def open_head(
    directory: str | os.PathLike[str], *, mmap: bool = True, verify: bool = False, ranks: Ranks | None = None
) -> Head:
    """What any head saved, whatever it consists of and however many processes it was divided among.

    Args:
        mmap, verify: as for `FusedHead.open`.
        ranks: divide its labels among these processes; None or one process: all of them here.

    Raises:
        StoreError: nothing there, or damaged, edited, newer, or no head.
    """
    ranks = ranks or Ranks()
    root = Path(directory)
    kind = None
    if not (root / store.SHARES).exists():
        stored = store.load(root, mmap=mmap, verify=verify)
        kind = stored.settings.get("kind")
    if kind is None and ranks.size == 1:
        return FusedHead.open(root, mmap=mmap, verify=verify)
    if kind is None:
        return ShardedHead.share(root, ranks, mmap=mmap, verify=verify)
    if kind not in COMPOSITES:
        raise store.StoreError(f"{root} holds a head of the kind {kind!r}; expected {', '.join(COMPOSITES)}")
    parts = [open_head(each, mmap=mmap, verify=verify, ranks=ranks) for each in saved.parts_of(stored, root)]
    return COMPOSITES[kind].made(stored, parts, root)
