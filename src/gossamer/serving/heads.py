"""Which key heads stream: a gate for each, from files in the format that DuoAttention publishes, and the split by it.

A gate near 1 says that a head looks for things anywhere (it stays dense), one near 0 that its first and latest tokens
are enough (it may stream).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from gossamer import files

NAME = "full_attention_heads.tsv"
LARGEST = 2**24  # bytes of such a file
SHIPPED = {"smollm2": Path(__file__).parent / "patterns" / "smollm2"}
"""Models of `gossamer model` that were calibrated: the folder of their gates; its config.json says how."""


@dataclass(frozen=True, eq=False)
class HeadPattern:
    """Gates of key heads.

    Attributes:
        gates: float64[layers, key heads].

    Source: DuoAttention (arXiv 2410.10819), section 2.2; its files of gates.

    >>> pattern = HeadPattern(torch.tensor([[0.9, 0.1], [0.2, 1.0]], dtype=torch.float64))
    >>> pattern.streaming(0.5).tolist()
    [[False, True], [True, False]]
    """

    gates: Tensor

    def __post_init__(self) -> None:
        if self.gates.dim() != 2 or self.gates.dtype != torch.float64:
            raise ValueError(f"gates must be float64[layers, heads], got {self.gates.dtype}{list(self.gates.shape)}")

    @classmethod
    def load(cls, path: str | Path) -> HeadPattern:
        """Read a table of numbers with a row for each layer, or the folder that has it.

        Raises:
            FileNotFoundError, ValueError: naming the file and what is wrong with it.
        """
        file = Path(path) / NAME if Path(path).is_dir() else Path(path)
        try:
            lines = files.read(file, limit=LARGEST).decode().splitlines()
            rows = [[float(number) for number in line.split()] for line in lines if line.strip()]
        except ValueError as error:
            raise ValueError(f"{file} must be a table of numbers, a row for each layer: {error}") from None
        if not rows or len(set(map(len, rows))) != 1:
            found = f"rows of {sorted(set(map(len, rows)))}" if rows else "nothing"
            raise ValueError(f"{file} must be a table of numbers with rows of one length, got {found}")
        gates = torch.tensor(rows, dtype=torch.float64, device="cpu")
        wrong = (~gates.isfinite()).nonzero().tolist()
        if wrong:
            layer, head = wrong[0]
            raise ValueError(f"{file} has {float(gates[layer, head])} for head {head} of layer {layer}, not a number")
        return cls(gates)

    def save(self, path: str | Path) -> None:
        """Write the table, whole or not at all."""
        rows = ("\t".join(f"{gate:.18e}" for gate in row) for row in self.gates.tolist())
        with files.replacing(path) as file:
            file.write(("\n".join(rows) + "\n").encode())

    def streaming(self, share: float) -> Tensor:
        """bool[layers, heads]: the share of all heads with the least gates; of equal ones the earlier stream first."""
        if not 0 <= share <= 1:
            raise ValueError(f"static must be from 0 to 1, got {share}")
        flat = self.gates.clamp(0, 1).flatten()
        count = flat.numel() if share == 1 else 0 if share == 0 else math.ceil(share * (flat.numel() - 1))
        chosen = torch.zeros_like(flat, dtype=torch.bool)
        chosen[flat.argsort(stable=True)[:count]] = True
        return chosen.view_as(self.gates)


def spread(layers: int, heads: int) -> HeadPattern:
    """Gates for want of measured ones: the later heads of every layer stream first, so that each layer keeps some."""
    return HeadPattern(
        torch.linspace(1, 0, heads, dtype=torch.float64, device="cpu").expand(layers, heads).contiguous()
    )
