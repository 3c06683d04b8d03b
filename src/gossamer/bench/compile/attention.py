"""One layer of attention over a mask that each call brings along: windows with global tokens, and documents.

Beside the ways of every section FlexAttention, compiled: with the blocks of its mask known beforehand, and with finding
them in the time, as ours does. A call is two masks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from gossamer.bench.cells import Row, ratio, value
from gossamer.bench.compile import ways
from gossamer.bench.compile.ways import EAGER, INDUCTOR, OURS
from gossamer.bench.section import Section, Settings, Table

FLEX, MADE = "FlexAttention", "FlexAttention, blocks found in the time"
NAMES = (EAGER, INDUCTOR, OURS)
HEADS, WIDTH = 12, 64
MASKS = 2


class Layer(nn.Module):
    """Queries, keys and values of a token, attention over a mask, and what becomes of it."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(HEADS * WIDTH, 3 * HEADS * WIDTH), nn.Linear(HEADS * WIDTH, HEADS * WIDTH)

    def forward(self, x: Tensor, mask: Any) -> Tensor:
        q, k, v = self.qkv(x).view(*x.shape[:2], 3, HEADS, WIDTH).permute(2, 0, 3, 1, 4)
        found: Tensor = self.out(self.attend(q, k, v, mask).transpose(1, 2).flatten(2))
        return found

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Any) -> Tensor:
        return scaled_dot_product_attention(q, k, v, attn_mask=mask)


class Flex(Layer):
    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Any) -> Tensor:
        from torch.nn.attention.flex_attention import flex_attention

        found: Tensor = flex_attention(q, k, v, block_mask=mask)
        return found


def windows(tokens: int, window: int, everywhere: int) -> Tensor:
    """bool[tokens, tokens] of Longformer: a window around each token, and some tokens that see and are seen by all."""
    place = torch.arange(tokens)
    mask = (place[:, None] - place).abs() <= window // 2
    chosen = torch.randperm(tokens)[:everywhere]
    mask[chosen] = True
    mask[:, chosen] = True
    return mask


def documents(tokens: int, mean: int) -> Tensor:
    """bool[tokens, tokens] of a decoder over documents that lie one behind the other, of `mean` tokens or so."""
    number = (torch.rand(tokens) < 1 / mean).cumsum(0)
    return (number[:, None] == number) & torch.ones(tokens, tokens, dtype=torch.bool).tril()


def blocks_of(mask: Tensor) -> Any:
    """What FlexAttention needs to know of a mask."""
    from torch.nn.attention.flex_attention import create_block_mask

    rows, columns = mask.shape
    return create_block_mask(lambda b, h, i, j: mask[i, j], None, None, rows, columns, device="cpu")


def _calls(model: Layer, x: Tensor, masks: list[Tensor]) -> dict[str, Callable[[], list[Tensor]]]:
    found = ways.compiled(model, names=NAMES)
    flex = Flex()
    flex.load_state_dict(model.state_dict())
    found[FLEX] = found[MADE] = torch.compile(flex)
    ready = [blocks_of(mask) for mask in masks]

    def call(name: str) -> Callable[[], list[Tensor]]:
        def run() -> list[Tensor]:
            with torch.no_grad():
                given = ready if name == FLEX else map(blocks_of, masks) if name == MADE else masks
                return [found[name](x, mask) for mask in given]

        return run

    return {name: call(name) for name in found}


def rows(settings: Settings) -> Iterator[Row]:
    torch.manual_seed(0)
    kinds: list[tuple[str, int, Callable[[int], Tensor]]] = [
        ("windows of 512, 16 global tokens", 4096, lambda n: windows(n, n // 8, n // 256)),
        ("causal, documents of 256", 2048, lambda n: documents(n, n // 8)),
        ("causal, documents of 1,024", 4096, lambda n: documents(n, n // 4)),
        ("causal", 2048, lambda n: torch.ones(n, n, dtype=torch.bool).tril()),
        ("half of all, at random", 2048, lambda n: torch.rand(n, n) < 0.5),
        ("nothing hidden", 2048, lambda n: torch.ones(n, n, dtype=torch.bool)),
    ]
    for name, tokens, make in kinds[: 1 if settings.quick else None]:
        tokens = 256 if settings.quick else tokens
        masks = [make(tokens) for _ in range(MASKS)]
        x = torch.randn(1, tokens, HEADS * WIDTH)
        calls = _calls(Layer().eval(), x, masks)
        seen = sum(float(mask.float().mean()) for mask in masks) / MASKS
        yield {
            "mask": name, "tokens": tokens, "seen": seen,
            **ways.measured(calls, settings, rivals=(FLEX, MADE), learn=4),
        }  # fmt: skip


COLUMNS = (
    ("mask", value("mask")), ("tokens", value("tokens")), ("seen", value("seen", ".0%")),
    ("fastest dense", ways.best_dense), *((name, ratio(name)) for name in (OURS, FLEX, MADE)),
)  # fmt: skip

SECTION = Section(rows, Table(ways.with_summary(COLUMNS)), on_gpu=False)
