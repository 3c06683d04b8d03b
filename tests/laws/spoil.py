"""Runs where Triton is interpreted: memory between two kernels is overwritten."""

import importlib

import torch
from oracles import divided, index_of

from gossamer.testing import case


def partial_sums():
    """dsd in ranges whose partial sums become infinite before they are added.

    Returns: how many partial sums were kept, the tile rows that came out infinite, the rows that are cut.
    """
    module = importlib.import_module("gossamer.kernels.triton.dsd")
    c = case("every tile")
    offsets, indices = index_of(c.tiles(), c.tiles().numel())
    work = divided(offsets, 5, False)
    ends = offsets.tolist()
    split = {
        row for part in work.tolist() for row, start, end in part if row >= 0 and [start, end] != ends[row : row + 2]
    }
    kept, launch = [], module.launch

    def spoil(kernel, grid, choices, *args, **constants):
        if kernel is module.dsd_joined:
            kept.append(int(args[9].isfinite().any(dim=(1, 2)).sum()))
            args[9].fill_(torch.inf)
        return launch(kernel, grid, choices, *args, **constants)

    module.launch = spoil
    try:
        values, b = torch.ones(len(indices), *c.tile), torch.ones(c.cols, 16)
        y = module.dsd(values, offsets, indices, None, None, b, c.rows, False, False, work)
    finally:
        module.launch = launch
    rows = y.isinf().any(dim=1).view(-1, c.tile[0]).all(dim=1).nonzero().flatten().tolist()
    return sum(kept), rows, sorted(split)
