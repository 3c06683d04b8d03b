"""Models whose ReLUs leave a chosen share of zeros, and one that has learnt to: what `feed_forward` measures."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gossamer import extras
from gossamer.data import language

OPT_125M = {
    "hidden_size": 768, "ffn_dim": 3072, "num_hidden_layers": 12, "num_attention_heads": 12, "vocab_size": 50272,
    "word_embed_proj_dim": 768, "max_position_embeddings": 2048,
}  # fmt: skip
TOY = {
    "hidden_size": 32, "ffn_dim": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 300,
    "word_embed_proj_dim": 32, "max_position_embeddings": 512,
}  # fmt: skip
TRAINED = {
    "hidden_size": 512, "ffn_dim": 2048, "num_hidden_layers": 2, "num_attention_heads": 8, "vocab_size": 1024,
    "word_embed_proj_dim": 512, "max_position_embeddings": 1024,
}  # fmt: skip
_FIRST, _RISE = 0.01, 1.03  # of the penalty: at first, and in a step


class FeedForwards(nn.Module):
    """The feed-forward blocks of a decoder like OPT, one after the other as in the decoder but without attention.

    A single block's weights would stay in the caches from call to call, which no model's do.
    """

    def __init__(self, dim: int, hidden: int, depth: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(depth))
        self.fc1 = nn.ModuleList(nn.Linear(dim, hidden) for _ in range(depth))
        self.fc2 = nn.ModuleList(nn.Linear(hidden, dim) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        for norm, up, down in zip(self.norms, self.fc1, self.fc2, strict=True):
            x = x + down(F.relu(up(norm(x))))
        return x


def opt(sizes: dict[str, int]) -> Any:
    """OPT with random weights."""
    transformers = extras.needed("transformers", "OPT needs transformers", "serving")
    torch.manual_seed(0)
    config = transformers.OPTConfig(**sizes, dropout=0.0, attention_dropout=0.0)
    return transformers.OPTForCausalLM(config).eval().requires_grad_(False)


def inner_linears(model: nn.Module) -> list[nn.Linear]:
    """The linears before a ReLU: those called fc1, or in a list of that name."""
    found = [each for name, each in model.named_modules() if ".fc1" in f".{name}" and isinstance(each, nn.Linear)]
    if not found:
        raise ValueError("model has no nn.Linear called fc1")
    return found


@torch.no_grad()
def shift_biases(model: nn.Module, batch: Tensor, share: float) -> None:
    """Shift the biases of `inner_linears` so that after a ReLU each has this share of zeros on a batch.

    The same for each neuron: zeros lie at random places, which is the hard case; a trained network has neurons that are
    seldom on.
    """

    def shift(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        assert isinstance(module, nn.Linear)
        # of one linear after the other, in one pass: later ones see what the earlier ones then give
        moved = torch.quantile(output.flatten(0, -2)[:512], share, dim=0)
        module.bias.sub_(moved)
        shifted: Tensor = output - moved
        return shifted

    hooks = [each.register_forward_hook(shift) for each in inner_linears(model)]
    try:
        model(batch)
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def counted(model: nn.Module) -> Iterator[list[float]]:
    """Within: the shares of results of `inner_linears` that a ReLU turns to zero, call after call."""
    shares: list[float] = []
    hooks = [
        each.register_forward_hook(lambda module, inputs, output: shares.append(float((output <= 0).float().mean())))
        for each in inner_linears(model)
    ]
    try:
        yield shares
    finally:
        for hook in hooks:
            hook.remove()


def zeros(model: nn.Module, batch: Tensor) -> float:
    """The share of zeros after the ReLUs of one batch."""
    with counted(model) as shares, torch.no_grad():
        model(batch)
    return sum(shares) / len(shares)


def trained(sizes: dict[str, int], steps: int, share: float) -> tuple[Any, Tensor, float]:
    """A decoder like OPT that has read Python's own sources for so many steps of 1024 tokens.

    Args:
        share: of zeros after its ReLUs, roughly: an L1 penalty on what they let through rises while there are fewer,
            and falls while there are more (ProSparse, 2024, raises one step by step).

    Returns:
        the model; tokens that it has not seen; its loss on 8 windows of them, in nats.
    """
    text = language.library(sizes["vocab_size"])
    sizes = {**sizes, "vocab_size": text.vocabulary}
    model = opt(sizes).train().requires_grad_(True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01)
    inner: list[Tensor] = []
    hooks = [
        each.register_forward_hook(lambda module, inputs, output: inner.append(output)) for each in inner_linears(model)
    ]
    penalty = _FIRST
    for batch in language.windows(text.train, length=128, batch=8, steps=steps):
        inner.clear()
        loss = model(batch, labels=batch).loss
        let_through = torch.stack([each.relu().mean() for each in inner]).mean()
        optimizer.zero_grad()
        (loss + penalty * let_through).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        found = sum(float((each <= 0).float().mean()) for each in inner) / len(inner)
        penalty *= _RISE if found < share else 1 / _RISE
    for hook in hooks:
        hook.remove()
    model.eval().requires_grad_(False)
    held = language.in_order(text.validation, length=128, batch=8, most=8)[0]
    with torch.no_grad():
        return model, text.validation.long(), float(model(held, labels=held).loss)
