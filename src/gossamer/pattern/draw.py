"""A pattern as text: `·` nothing present, `░▒▓` some of the tiles under the character, `█` all of them."""

from __future__ import annotations

import torch
from torch import Tensor

LINES, COLUMNS = 32, 64
SHADES = "·░▒▓█"


def draw(keys: Tensor, grid: tuple[int, int]) -> str:
    """At most 32 lines of 64 characters, each for an equal share of the tile rows and columns.

    Counts tiles per character by their numbers, so a grid too large to hold as a mask can be drawn.
    """
    tile_rows, tile_cols = grid
    if tile_rows * tile_cols == 0:
        return "(no tiles)"
    lines, columns = min(tile_rows, LINES), min(tile_cols, COLUMNS)
    keys = keys.cpu()
    keys = keys[keys < tile_rows * tile_cols]
    cell = (keys // tile_cols * lines // tile_rows) * columns + keys % tile_cols * columns // tile_cols
    present = torch.bincount(cell, minlength=lines * columns).view(lines, columns)
    heights = torch.bincount(torch.arange(tile_rows, device="cpu") * lines // tile_rows)
    widths = torch.bincount(torch.arange(tile_cols, device="cpu") * columns // tile_cols)
    share = present / (heights[:, None] * widths)
    level = torch.where(share == 1, 4, (share * 3).ceil().clamp(max=3)).int()
    return "\n".join("".join(SHADES[shade] for shade in line) for line in level.tolist())
