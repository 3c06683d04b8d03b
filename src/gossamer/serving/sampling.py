"""Which token comes next: greedy or drawn, from the logits of one request and nothing else.

Chosen with float64 in numpy on the CPU: no thread count, batch or device changes a sum. May import nothing of gossamer
but what serving/text.py has.
"""

from __future__ import annotations

import hashlib
import math
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gossamer.serving.text import stop_strings

Floats = NDArray[np.float64]

_NUMBERS: dict[str, tuple[str, Callable[[float], bool]]] = {
    "temperature": (" of at least 0", lambda value: value >= 0),
    "top_p": (" above 0 and at most 1", lambda value: 0 < value <= 1),
    "min_p": (" from 0 to 1", lambda value: 0 <= value <= 1),
    "repetition_penalty": (" above 0", lambda value: value > 0),
    "presence_penalty": ("", lambda value: True),
    "frequency_penalty": ("", lambda value: True),
}


@dataclass(frozen=True)
class Sampling:
    """How the tokens of one request are chosen, and when they end.

    In this order: repetition penalty, presence and frequency penalty, bias, temperature, top-k, top-p, min-p. Tokens of
    equal logits are kept or dropped together.

    Attributes:
        max_tokens: how many tokens come at most; at least 1.
        temperature: logits are divided by it. 0: greedy, the token with the largest logit, the lowest id among equals;
            then top_k, top_p, min_p and seed have nothing to say.
        top_k: only the k tokens with the largest logits, and those equal to the last of them. None: all.
        top_p: only the fewest of the likeliest tokens that have this probability together. In (0, 1].
        min_p: only tokens at least so likely, as a share of the likeliest. In [0, 1].
        repetition_penalty: above 0. The logit of each token of the prompt and the output is divided by it where it is
            positive and multiplied where it is negative.
        presence_penalty: taken from the logit of each token of the output, once.
        frequency_penalty: taken from it as often as the token is in the output.
        seed: an integer: the request repeats its tokens. None: another one each time.
        stop: a string or several that end the text, which does not contain them.
        stop_token_ids: tokens that end the output.
        ignore_eos: go on after the model's own end token.
        logprobs: log-probabilities of the model, before anything above changes them: 0 of the chosen token, k of the k
            likeliest too. None: none.
        logit_bias: what is added to the logits of some tokens; -inf forbids one.

    Raises:
        TypeError: a value is of the wrong type. ValueError: outside its range. Both name the attribute, the value and
        what was expected.

    Source: Keskar et al., CTRL (arXiv 1909.05858), section 4.1, for the repetition penalty; Holtzman et al. (arXiv
    1904.09751) for top-p; Nguyen et al. (arXiv 2407.01082) for min-p; OpenAI's API for the two other penalties.

    >>> Sampling(temperature=0.7, seed=0, stop="END").stop
    ('END',)
    """

    max_tokens: int = 64
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    stop: tuple[str, ...] | str = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    logit_bias: Mapping[int, float] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        held = {name: getattr(self, name) for name in self.__dataclass_fields__}
        held["max_tokens"] = _integer("max_tokens", self.max_tokens, 1)
        for name, least in (("top_k", 1), ("logprobs", 0), ("seed", None)):
            if held[name] is not None:
                held[name] = _integer(name, held[name], least, ", or None")
        for name, (expected, holds) in _NUMBERS.items():
            held[name] = _number(name, held[name], expected, holds)
        if not isinstance(self.ignore_eos, bool):
            raise TypeError(f"ignore_eos must be True or False, got {self.ignore_eos!r}")
        held["stop"] = stop_strings(self.stop)
        tokens = self.stop_token_ids
        if isinstance(tokens, (str, bytes, Mapping)) or not isinstance(tokens, Iterable):
            raise TypeError(f"stop_token_ids must be a sequence of tokens, got {tokens!r}")
        held["stop_token_ids"] = _tokens("stop_token_ids", tokens)
        if not isinstance(self.logit_bias, Mapping):
            raise TypeError(f"logit_bias must be a mapping from tokens to numbers, got {self.logit_bias!r}")
        held["logit_bias"] = {
            _integer("a token of logit_bias", token, 0): -math.inf
            if bias == -math.inf
            else _number(f"logit_bias[{token}]", bias, ", or -inf", lambda value: True)
            for token, bias in self.logit_bias.items()
        }
        for name, value in held.items():
            object.__setattr__(self, name, value)


class Choice(NamedTuple):
    """A chosen token. `logprob` is None, and `top` empty, unless `Sampling.logprobs` asks for them.

    `top` has the likeliest tokens and their log-probabilities, likeliest first, lower ids first among equals.
    """

    token: int
    logprob: float | None
    top: tuple[tuple[int, float], ...]


class Sampler:
    """Chooses the tokens of one request, one after the other.

    The k-th token depends on the logits that it is given, the sampling, the tokens before it and the k-th random number
    of the seed, which is a function of both: on no other request, batch, thread count or state. There is no state to
    save but the tokens.

    Args:
        sampling: a `Sampling`.
        prompt_token_ids: the tokens of the prompt, which `repetition_penalty` counts.
        vocabulary: how many logits there are.

    Attributes:
        seed: that of the sampling, or the one that was drawn because it has none.
        count: how many tokens were chosen.

    Raises:
        TypeError, ValueError: an argument of the wrong type; a token of the prompt or the sampling, or a number of
        logprobs, that the vocabulary does not have.

    Example:
        >>> sampler = Sampler(Sampling(logprobs=1), [3, 1], vocabulary=4)
        >>> choice = sampler.choose(torch.tensor([0.2, 0.2, 0.5, 0.1]).log())
        >>> choice.token, round(choice.logprob, 3), [token for token, logprob in choice.top]
        (2, -0.693, [2])
    """

    def __init__(self, sampling: Sampling, prompt_token_ids: Sequence[int] | Tensor, vocabulary: int) -> None:
        if not isinstance(sampling, Sampling):
            raise TypeError(f"sampling must be a Sampling, got {sampling!r}")
        _integer("vocabulary", vocabulary, 1)
        if sampling.logprobs is not None and sampling.logprobs > vocabulary:
            raise ValueError(f"logprobs must be at most the {vocabulary} tokens there are, got {sampling.logprobs}")
        prompt = prompt_token_ids.tolist() if isinstance(prompt_token_ids, Tensor) else prompt_token_ids
        prompt = _tokens("prompt_token_ids", prompt, vocabulary)
        _tokens("stop_token_ids", sampling.stop_token_ids, vocabulary)
        _tokens("logit_bias", sampling.logit_bias, vocabulary)
        self.sampling = sampling
        self.vocabulary = vocabulary
        self.seed = secrets.randbits(63) if sampling.seed is None else int(sampling.seed)
        self.count = 0
        self._seen = np.zeros(vocabulary, bool) if sampling.repetition_penalty != 1 else None
        if self._seen is not None:
            self._seen[list(prompt)] = True
        counted = sampling.presence_penalty != 0 or sampling.frequency_penalty != 0
        self._counts = np.zeros(vocabulary, np.int64) if counted else None
        self._biased = np.fromiter(sampling.logit_bias, np.int64)
        self._bias = np.fromiter(sampling.logit_bias.values(), np.float64)

    def choose(self, logits: Tensor) -> Choice:
        """The next token.

        Args:
            logits: [vocabulary], of a floating dtype, on any device; -inf for tokens that must not come.

        Raises:
            TypeError, ValueError: as `choose`.
        """
        if not isinstance(logits, Tensor) or logits.dim() != 1:
            raise _not_logits(logits, "[vocabulary]")
        return choose(logits[None], [self])[0]

    @property
    def changes_logits(self) -> bool:
        """Whether the token with the largest logit of the model may be another after penalties and bias."""
        return self._seen is not None or self._counts is not None or len(self._biased) > 0

    def probabilities(self, logits: Tensor) -> Tensor:
        """float64[vocabulary]: how likely each token is to be chosen next; 1 for one token where greedy.

        Args:
            logits: [vocabulary], as for `choose`.
        """
        if not isinstance(logits, Tensor) or logits.dim() != 1:
            raise _not_logits(logits, "[vocabulary]")
        _peaks(logits[None], [self])
        tokens, weights = self._weighed(self._changed(_row(logits)))
        probabilities = np.zeros(self.vocabulary)
        probabilities[tokens] = weights / weights.sum()
        return torch.from_numpy(probabilities)

    def _choose(self, row: Floats | None, greedy: int) -> Choice:
        """The choice, from the logits; where they change nothing, `row` may be left out: it is `greedy`."""
        token = greedy
        logprob: float | None = None
        top: tuple[tuple[int, float], ...] = ()
        if row is not None and (self.sampling.temperature > 0 or self.changes_logits):
            tokens, weights = self._weighed(self._changed(row))
            below = np.cumsum(weights)
            # The first token whose sum exceeds a number below the whole: never one of weight 0.
            token = int(tokens[np.searchsorted(below, self._uniform() * below[-1], side="right")])
        if row is not None and self.sampling.logprobs is not None:
            logprobs = row - row.max()
            logprobs -= math.log(np.exp(logprobs).sum())
            logprob = float(logprobs[token])
            top = tuple((best, float(logprobs[best])) for best in _best(row, self.sampling.logprobs))
        return Choice(token, logprob, top)

    def _take(self, token: int) -> None:
        self.count += 1
        if self._seen is not None:
            self._seen[token] = True
        if self._counts is not None:
            self._counts[token] += 1

    def _changed(self, row: Floats) -> Floats:
        """The logits after penalties and bias."""
        if not self.changes_logits:
            return row
        sampling = self.sampling
        row = row.copy()
        with np.errstate(over="ignore", invalid="ignore"):  # the largest is looked at below
            if self._seen is not None:
                seen = row[self._seen]
                penalty = sampling.repetition_penalty
                row[self._seen] = np.where(seen < 0, seen * penalty, seen / penalty)
            if self._counts is not None:
                row -= sampling.presence_penalty * (self._counts > 0) + sampling.frequency_penalty * self._counts
            row[self._biased] += self._bias
        if not math.isfinite(row.max()):
            raise ValueError(
                f"penalties and logit_bias must leave a token to choose and no logit above float64, got {row.max()} as "
                f"the largest logit, of {sampling}"
            )
        return row

    def _weighed(self, row: Floats) -> tuple[NDArray[np.int64], Floats]:
        """Tokens in order, all that may be chosen among them, and what the probability of each is in proportion to."""
        sampling = self.sampling
        if sampling.temperature == 0:
            return row.argmax(axis=0, keepdims=True), np.ones(1)
        if sampling.top_k is not None and sampling.top_k < len(row):
            tokens = np.flatnonzero(row >= np.partition(row, -sampling.top_k)[-sampling.top_k])
        else:
            tokens = np.arange(len(row))
        weights = row[tokens]
        weights -= weights.max()
        with np.errstate(over="ignore"):  # a temperature near 0 takes all but the largest to -inf
            weights /= sampling.temperature
        np.exp(weights, out=weights)
        if sampling.top_p < 1:
            # No sum of tokens below this one reaches what may be dropped: the many that are not likely are not sorted.
            total = weights.sum()
            likely = np.sort(weights[weights >= (1 - sampling.top_p) * total / len(weights)])[::-1]
            kept = np.searchsorted(np.cumsum(likely), sampling.top_p * total, side="left")
            weights[weights < likely[min(kept, len(likely) - 1)]] = 0.0
        if sampling.min_p > 0:
            weights[weights < sampling.min_p] = 0.0  # the likeliest has weight 1
        return tokens, weights

    def _uniform(self) -> float:
        """The number in [0, 1) that belongs to the seed and the place of the next token: 53 bits of a hash of both."""
        digest = hashlib.sha256(f"{self.seed}\0{self.count}".encode()).digest()
        return (int.from_bytes(digest[:8], "little") >> 11) / 2**53


def choose(logits: Tensor, samplers: Sequence[Sampler]) -> list[Choice]:
    """The next token of each request: what each sampler's own `choose` gives for its row.

    Args:
        logits: [requests, vocabulary], of a floating dtype, on any device. Greedy rows take one argmax there; rows that
            are drawn, changed or asked for log-probabilities are copied to the CPU.
        samplers: one per row.

    Raises:
        TypeError: `logits` is no floating tensor, or `samplers` are none.
        ValueError: of another shape; a logit that is NaN or inf, or a row of -inf only. No sampler has moved then.

    Example:
        >>> samplers = [Sampler(Sampling(), [0], 3), Sampler(Sampling(temperature=1.0, top_k=1), [0], 3)]
        >>> [choice.token for choice in choose(torch.tensor([[0.0, 2.0, 1.0], [3.0, 2.0, 1.0]]), samplers)]
        [1, 0]
    """
    if not isinstance(logits, Tensor) or logits.dim() != 2:
        raise _not_logits(logits, "[requests, vocabulary]")
    greedy = _peaks(logits, samplers)
    if len({id(sampler) for sampler in samplers}) < len(samplers):
        raise ValueError("samplers must be different ones: two rows of one batch have the same")
    choices = []  # none is taken before all are made
    for index, (sampler, token) in enumerate(zip(samplers, greedy, strict=True)):
        sampling = sampler.sampling
        plain = sampling.temperature == 0 and sampling.logprobs is None and not sampler.changes_logits
        choices.append(sampler._choose(None if plain else _row(logits[index]), token))
    for sampler, choice in zip(samplers, choices, strict=True):
        sampler._take(choice.token)
    return choices


def _peaks(logits: Tensor, samplers: Sequence[Sampler]) -> list[int]:
    """The token with the largest logit of each row; an error for logits that no token can be chosen from."""
    if not logits.is_floating_point():
        raise TypeError(f"logits must be of a floating dtype, got {logits.dtype}")
    for sampler in samplers:
        if not isinstance(sampler, Sampler):
            raise TypeError(f"samplers must be a sequence of Sampler, one of them is {sampler!r}")
        if sampler.vocabulary != logits.shape[1]:
            raise ValueError(f"logits must be of {sampler.vocabulary} tokens, got shape {tuple(logits.shape)}")
    if len(samplers) != logits.shape[0]:
        raise ValueError(f"logits must have one row per sampler, {len(samplers)}, got shape {tuple(logits.shape)}")
    if not samplers:
        return []
    logits = logits.detach()
    tokens = logits.argmax(-1)  # the first of equals; NaN counts as the largest
    peaks = logits.gather(-1, tokens[:, None])[:, 0].tolist()
    for row, (token, peak) in enumerate(zip(tokens.tolist(), peaks, strict=True)):
        if math.isnan(peak) or peak == math.inf:
            raise ValueError(f"logits must be numbers or -inf, got {peak} for token {token} of row {row}")
        if peak == -math.inf:
            raise ValueError(f"logits must have a token above -inf, got -inf for all {logits.shape[1]} of row {row}")
    return tokens.tolist()


def _row(logits: Tensor) -> Floats:
    return logits.detach().to("cpu", torch.float64).numpy()


def _best(row: Floats, k: int) -> list[int]:
    """The k tokens with the largest logits, largest first; lower ids first among equals."""
    if k == 0:
        return []
    among = np.flatnonzero(row >= np.partition(row, -k)[-k])
    return among[np.argsort(-row[among], kind="stable")][:k].tolist()


def _not_logits(logits: object, expected: str) -> Exception:
    if isinstance(logits, Tensor):
        return ValueError(f"logits must be {expected}, got shape {tuple(logits.shape)}")
    return TypeError(f"logits must be a tensor {expected}, got {type(logits).__name__}")


def _tokens(name: str, tokens: Iterable[Any], vocabulary: int | None = None) -> tuple[int, ...]:
    """Tokens as a tuple of ints, each at least 0 and below the vocabulary."""
    tokens = tuple(tokens)
    end = math.inf if vocabulary is None else vocabulary
    if tokens and not (all(type(token) is int for token in tokens) and min(tokens) >= 0 and max(tokens) < end):
        tokens = tuple(_integer(f"a token of {name}", token, 0) for token in tokens)
        if max(tokens) >= end:
            raise ValueError(f"a token of {name} must be below the vocabulary of {vocabulary}, got {max(tokens)}")
    return tokens


def _integer(name: str, value: object, least: int | None, otherwise: str = "") -> int:
    expected = f"{name} must be an integer{'' if least is None else f' of at least {least}'}{otherwise}"
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{expected}, got {value!r}")
    if least is not None and int(value) < least:
        raise ValueError(f"{expected}, got {value!r}")
    return int(value)


def _number(name: str, value: object, expected: str, holds: Callable[[float], bool]) -> float:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a finite number{expected}, got {value!r}")
    try:
        number = float(value)
    except OverflowError:  # an integer of more than 308 digits
        number = math.inf
    if not math.isfinite(number) or not holds(number):
        raise ValueError(f"{name} must be a finite number{expected}, got {value!r}")
    return number
