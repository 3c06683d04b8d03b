"""A trained policy moved a little, so that what its decisions cost is the budget.

Training ends near its budget: the last steps differ from batch to batch. One number, added to all logits for "run the
next", makes up for the rest, and for a budget that is a little different.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from gossamer.routing.flops import Costs, Counter
from gossamer.routing.learning.batches import Batch, Batches
from gossamer.routing.learning.budget import Budget
from gossamer.routing.radial import Radial

_FIRST, _WIDEST = 0.125, 16.0
_HALVINGS = 9


@torch.inference_mode(False)
def settle(radial: Radial, data: Iterable[Batch], budget: float, *, tolerance: float = 0.005) -> float:
    """Let tokens run more or fewer units until they cost the budget on these texts.

    Args:
        radial: whose policy is moved by `Policy.lean`. data: batches as `distill` takes them.
        budget: the share in (0, 1] of the whole stack's multiply-adds. tolerance: how far off may be left.

    Returns:
        The share that is reached: the closest to the budget that was found, where routes leave a gap around it.

    Raises:
        ValueError: a bad budget, no data, or a policy that cannot be moved.

    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> config = LlamaConfig(vocab_size=50, hidden_size=32, intermediate_size=64, num_hidden_layers=3,
    ...                      num_attention_heads=2)
    >>> radial = Radial(LlamaForCausalLM(config))
    >>> _ = torch.nn.init.normal_(radial.policy.router.up, std=2.0)      # as after training
    >>> abs(settle(radial, [torch.randint(50, (8, 32))], 0.7) - 0.7) < 0.02
    True
    """
    Budget(budget)
    batches = Batches(data, None, vocabulary=len(radial.model.get_output_embeddings().weight))
    texts = [batches.take(step) for step in range(batches.steps)]
    modes = [(module, module.training) for module in radial.modules()]
    radial.eval()
    try:
        return _search(_Leaning(radial, texts), budget, tolerance)
    finally:
        for module, mode in modes:
            module.training = mode


class _Leaning:
    """What a policy costs when it leans so far from where it stood."""

    def __init__(self, radial: Radial, texts: Sequence[dict[str, torch.Tensor]]) -> None:
        self.radial, self.texts, self.at = radial, texts, 0.0
        self.seen: dict[float, float] = {}

    def __call__(self, amount: float) -> float:
        if amount not in self.seen:
            self.move(amount)
            self.seen[amount] = measured(self.radial, self.texts)
        return self.seen[amount]

    def move(self, amount: float) -> None:
        self.radial.policy.lean(amount - self.at)
        self.at = amount


def _search(cost: _Leaning, budget: float, tolerance: float) -> float:
    over = cost(0.0) - budget
    if abs(over) > tolerance:
        near, step = 0.0, -_FIRST if over > 0 else _FIRST
        while (cost(step) - budget) * over > 0 and abs(step) < _WIDEST:
            near, step = step, 2 * step
        far = step
        for _ in range(_HALVINGS):
            middle = (near + far) / 2
            if min(abs(each - budget) for each in cost.seen.values()) <= tolerance:
                break
            near, far = (middle, far) if (cost(middle) - budget) * over > 0 else (near, middle)
    best = min(cost.seen, key=lambda amount: (abs(cost.seen[amount] - budget), abs(amount)))
    cost.move(best)
    return cost.seen[best]


def measured(radial: Radial, texts: Sequence[dict[str, torch.Tensor]]) -> float:
    """The share of the whole stack's multiply-adds that tokens spend on these texts, counted."""
    device = radial.model.get_output_embeddings().weight.device
    length = sum(text["input_ids"].shape[1] for text in texts) / len(texts)
    counter = Counter(Costs.of_radial(radial, (length + 1) / 2))
    with torch.no_grad():
        for text in texts:
            radial(**{name: value.to(device) for name, value in text.items() if name != "labels"})
            assert radial.run is not None
            counter.add(radial.run)
    return counter.share
