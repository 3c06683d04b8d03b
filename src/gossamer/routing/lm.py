"""`RadialLM`: a language model from scratch whose depth is no matter of how many layers it has.

model = RadialLM(RadialConfig(vocabulary=2048, width=256, layers=4, hops=8))
train(model, windows(text.train, length=128, batch=16, steps=1000), budget=0.5)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from gossamer.extras import needed
from gossamer.routing.keys import KeyPolicy
from gossamer.routing.policies.policy import Policy
from gossamer.routing.radial import Mode, Radial


@dataclass(frozen=True)
class RadialConfig:
    """Sizes of a language model of Llama's kind.

    Attributes:
        vocabulary: tokens that it knows. width: of its states. layers: that have weights of their own.
        hops: how often a token may choose one, in mode "free"; None: once for each layer.
        heads: of queries. key_heads: of keys; None: as many. mlp: inner width of the MLPs; None: 8/3 of the width, a
            multiple of 32.
        context: the longest text. tied: whether the embeddings are the head too.

    Raises:
        ValueError: a number below 1, or heads that do not divide.

    >>> RadialConfig(vocabulary=100, width=64, heads=4).inner
    192
    """

    vocabulary: int
    width: int = 256
    layers: int = 4
    hops: int | None = None
    heads: int = 4
    key_heads: int | None = None
    mlp: int | None = None
    context: int = 512
    tied: bool = True

    def __post_init__(self) -> None:
        for name in ("vocabulary", "width", "layers", "hops", "heads", "key_heads", "mlp", "context"):
            value = getattr(self, name)
            if value is None and name in ("hops", "key_heads", "mlp"):
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be an integer of at least 1, got {value!r}")
        if self.width % (2 * self.heads):
            raise ValueError(f"width must be a multiple of twice the {self.heads} heads, got {self.width}")
        if self.heads % (self.key_heads or self.heads):
            raise ValueError(f"heads must be a multiple of key_heads, got {self.heads} and {self.key_heads}")

    @property
    def inner(self) -> int:
        return self.mlp or -(-8 * self.width // (3 * 32)) * 32

    def transformer(self, seed: int | None = 0) -> Any:
        """The model itself, a LlamaForCausalLM in training mode; weights are a matter of the seed, None: of torch's."""
        transformers: Any = needed("transformers", "language models need transformers", "serving")
        config = transformers.LlamaConfig(
            vocab_size=self.vocabulary, hidden_size=self.width, intermediate_size=self.inner,
            num_hidden_layers=self.layers, num_attention_heads=self.heads,
            num_key_value_heads=self.key_heads or self.heads, max_position_embeddings=self.context,
            tie_word_embeddings=self.tied, bos_token_id=None, eos_token_id=None, attn_implementation="sdpa",
        )  # fmt: skip
        with torch.random.fork_rng(enabled=seed is not None):
            if seed is not None:
                torch.manual_seed(seed)
            return transformers.LlamaForCausalLM(config)


class RadialLM(Radial):
    """A transformer made from its sizes, whose tokens choose their layers.

    Args:
        config: its sizes. mode, kv, policy, adapter, joint: see `Radial`; mode "free" lets tokens run any layer at each
            of `config.hops` hops, again if they like.
        seed: of the weights; None: torch's own generator.

    Source: after Radial Networks (arXiv 2404.04900).

    >>> model = RadialLM(RadialConfig(vocabulary=50, width=64, layers=2, hops=4, heads=2))
    >>> model(torch.tensor([[1, 2, 3]])).logits.shape, len(model.units)
    (torch.Size([1, 3, 50]), 8)
    """

    @torch.inference_mode(False)
    def __init__(
        self, config: RadialConfig, mode: Mode = "free", kv: KeyPolicy = "sparse", *, policy: Policy | None = None,
        adapter: int = 0, joint: bool = False, seed: int | None = 0,
    ) -> None:  # fmt: skip
        hops = config.hops if mode == "free" else None
        super().__init__(config.transformer(seed), mode, kv, policy=policy, adapter=adapter, hops=hops, joint=joint)
        self.sizes = config
