"""Self-speculation: a model's first layers guess some tokens, all of it checks them in one pass.

    found = speculate(radial, ids, draft=EarlyExit(30, 576, unit=18), max_new_tokens=64)
    found.tokens, found.rate

The text is that of greedy generation without guesses: a guess stays only if it is what the whole model says next.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor

from gossamer.routing.policies.policy import Policy
from gossamer.routing.radial import Radial
from gossamer.serving.cache import SparseCache


@dataclass(frozen=True)
class Speculation:
    """What came of it.

    Attributes:
        tokens: int64[new tokens]. passes: of the whole model, the prompt's too.
        guessed, kept: how many tokens were guessed, and how many of those stayed.
    """

    tokens: Tensor
    passes: int
    guessed: int
    kept: int

    @property
    def rate(self) -> float:
        """The share of guesses that stayed."""
        return self.kept / self.guessed if self.guessed else 0.0


@torch.no_grad()
def speculate(
    radial: Radial, input_ids: Tensor, *, draft: Policy, ahead: int = 4, max_new_tokens: int = 64,
    end: Collection[int] = (),
) -> Speculation:  # fmt: skip
    """Greedy generation for one text.

    Args:
        radial: the model that has the last word, with its own policy.
        input_ids: int64[1, tokens].
        draft: who guesses: a policy over the same units, such as `EarlyExit`.
        ahead: tokens that are guessed before a check. end: tokens that end the text.

    Raises:
        ValueError: an argument is out of its range, or the policies are of other units.

    Source: Elhoushi et al., LayerSkip (arXiv 2404.16710), section 3.3; early layers are computed again in a check,
    which costs one pass over their weights for `ahead` tokens together.
    """
    if input_ids.dim() != 2 or input_ids.shape[0] != 1 or not input_ids.shape[1]:
        raise ValueError(f"input_ids must be int64[1, tokens], got {list(input_ids.shape)}")
    for name, value in (("ahead", ahead), ("max_new_tokens", max_new_tokens)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be an integer of at least 1, got {value!r}")
    if radial.hops > 1:
        raise ValueError('speculation is for mode="skip" or "sequential": hops have no first layers')
    drafter = Radial(radial.model, kv="sparse", units=radial.kind, policy=draft).train(radial.training)
    cache, stops = SparseCache(radial.geometry), set(end)
    logits = radial(input_ids, past_key_values=cache, logits_to_keep=1).logits
    new = [int(logits[0, -1].argmax())]
    passes, guessed, kept = 1, 0, 0
    while len(new) < max_new_tokens and new[-1] not in stops:
        count = min(ahead, max_new_tokens - len(new) - 1)
        guesses = _guesses(drafter, cache, new[-1], count)
        if guesses:
            cache.crop(-len(guesses))
        token = torch.tensor([[new[-1], *guesses]], device=input_ids.device)
        said = radial(token, past_key_values=cache).logits[0].argmax(1).tolist()
        passes, guessed = passes + 1, guessed + len(guesses)
        right = 0
        while right < len(guesses) and guesses[right] == said[right]:
            right += 1
        if right < len(guesses):
            cache.crop(right - len(guesses))
        kept += right
        for each in said[: right + 1]:
            new.append(each)
            if each in stops:
                break
    return Speculation(torch.tensor(new[:max_new_tokens], device=input_ids.device), passes, guessed, kept)


def _guesses(drafter: Radial, cache: SparseCache, token: int, count: int) -> list[int]:
    """The next `count` tokens by the draft, one by one; what it wrote into the cache stays there."""
    guesses: list[int] = []
    while len(guesses) < count:
        last = torch.tensor([[guesses[-1] if guesses else token]], device="cpu")
        guesses.append(int(drafter(last, past_key_values=cache).logits[0, -1].argmax()))
    return guesses
