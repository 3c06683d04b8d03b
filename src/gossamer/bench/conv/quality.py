"""What leaving activations out costs: perplexity of a character model trained here on Python's own sources."""

from __future__ import annotations

import copy
import sysconfig
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import gossamer as gs
from gossamer.bench.cells import value
from gossamer.bench.section import Row, Section, Settings, Table

SPARSITIES = (0.25, 0.4, 0.5, 0.6, 0.7, 0.8)
WINDOW = 128


class Attention(nn.Module):
    """Causal, four heads, positions by rotation."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(dim, dim, bias=False) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (p(x).unflatten(-1, (4, -1)).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        half = q.shape[-1] // 2
        rate = 1000.0 ** -(torch.arange(half) / half)
        angle = torch.arange(x.shape[1])[:, None] * rate
        cos, sin = angle.cos(), angle.sin()

        def turned(a: Tensor) -> Tensor:
            left, right = a[..., :half], a[..., half:]
            return torch.cat((left * cos - right * sin, left * sin + right * cos), -1)

        mixed = F.scaled_dot_product_attention(turned(q), turned(k), v, is_causal=True)
        return self.o_proj(mixed.transpose(1, 2).flatten(2))


class Layer(nn.Module):
    def __init__(self, dim: int, hidden: int, activation: Any) -> None:
        super().__init__()
        self.before, self.attention = nn.RMSNorm(dim), Attention(dim)
        self.between, self.mlp = nn.RMSNorm(dim), gs.nn.GatedFeedForward(dim, hidden, activation)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.before(x))
        return x + self.mlp(self.between(x))


class CharacterModel(nn.Module):
    """Llama's layers over bytes."""

    def __init__(self, dim: int, hidden: int, depth: int, activation: Any) -> None:
        super().__init__()
        self.embed = nn.Embedding(128, dim)
        self.layers = nn.ModuleList(Layer(dim, hidden, copy.deepcopy(activation)) for _ in range(depth))
        self.norm, self.head = nn.RMSNorm(dim), nn.Linear(dim, 128, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x))


def text(quick: bool) -> tuple[Tensor, Tensor]:
    """Bytes of the standard library's modules: every eighth file is held out. [n], [m]."""
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))[: 16 if quick else None]
    parts: tuple[list[bytes], list[bytes]] = ([], [])
    for at, file in enumerate(files):
        parts[at % 8 == 7].append(bytes(b for b in file.read_bytes() if b < 128))
    train, held = (torch.frombuffer(bytearray(b"".join(part)), dtype=torch.uint8).long() for part in parts)
    return train, held


def windows(ids: Tensor, count: int, generator: torch.Generator) -> Tensor:
    starts = torch.randint(len(ids) - WINDOW - 1, (count,), generator=generator)
    return ids[starts[:, None] + torch.arange(WINDOW + 1)]


def train(model: CharacterModel, ids: Tensor, steps: int) -> None:
    generator = torch.Generator().manual_seed(1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps, pct_start=0.1)
    for _ in range(steps):
        batch = windows(ids, 16, generator)
        loss = F.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()


def perplexity(model: CharacterModel, batch: Tensor) -> float:
    with torch.no_grad():
        losses = [F.cross_entropy(model(b[:, :-1]).flatten(0, 1), b[:, 1:].flatten()) for b in batch.split(32)]
    return float(torch.stack(losses).mean().exp())


def rows(settings: Settings) -> Iterator[Row]:
    """One row per model, kind of threshold and sparsity; perplexity per character on files that were not trained on."""
    ids, held = text(settings.quick)
    dim, hidden, depth, steps = (32, 64, 2, 3) if settings.quick else (128, 384, 4, 300)
    batch = windows(held, 8 if settings.quick else 256, torch.Generator().manual_seed(2))
    sample = windows(ids, 4 if settings.quick else 24, torch.Generator().manual_seed(3))[:, :-1]
    keep = round(0.08 * hidden)
    models = (
        ("SiLU", "silu"),
        ("ReLU", "relu"),
        (f"statistical top-k, {keep} of {hidden}", gs.nn.StatisticalTopK(keep)),
    )
    for name, activation in models:
        torch.manual_seed(0)
        model = CharacterModel(dim, hidden, depth, activation)
        train(model, ids, steps)

        def row(found: CharacterModel, thresholds: str, sparsity: float, name: str = name, **facts: Any) -> Row:
            return {
                "model": name, "steps": steps, "thresholds": thresholds, "sparsity": sparsity, **facts,
                "perplexity": perplexity(found, batch), "gates": _closed(found, batch),
            }  # fmt: skip

        yield row(model, "none", 0.0)
        if name != "SiLU":
            continue
        for sparsity, allocation in product((0.5,) if settings.quick else SPARSITIES, ("uniform", "greedy")):
            found = copy.deepcopy(model)
            options: dict[str, Any] = {"allocation": allocation, "layers": ["layers.*"], "prefill": "threshold"}
            report = gs.nn.threshold(found, sample, sparsity, **options)
            yield row(found, allocation, sparsity, expected=report.sparsity)
        for sparsity in (0.5,) if settings.quick else (0.5, 0.7, 0.9):
            found = copy.deepcopy(model)
            gs.nn.threshold(found, sample, sparsity, layers=["layers.*.mlp"])
            yield row(found, "gates", sparsity)


def _closed(model: CharacterModel, batch: Tensor) -> float:
    """The share of closed gates on held-out text, over all layers."""
    shares: list[float] = []

    def count(module: nn.Module, args: Any, gate: Tensor) -> None:
        shares.append(float((gate.abs() <= limits[module]).double().mean()))

    blocks = [module for module in model.modules() if isinstance(module, gs.nn.GatedFeedForward)]
    limits = {block.act_fn: block.threshold for block in blocks}
    hooks = [act.register_forward_hook(count) for act in limits]
    with torch.no_grad():
        model(batch[:8, :-1])
    for hook in hooks:
        hook.remove()
    return sum(shares) / len(shares)


COLUMNS = (
    ("trained with", value("model")), ("thresholds", value("thresholds")), ("sparsity", value("sparsity", ".0%")),
    ("gates closed", value("gates", ".0%")), ("perplexity", value("perplexity", ".3f")),
)  # fmt: skip


SECTION = Section(rows, Table(COLUMNS, note=""), on_gpu=False)
