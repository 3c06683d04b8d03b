"""What tokens leave in the units that they skip: the policies for keys and values.

    sparse       nothing: a unit's pages hold the tokens that ran it
    project      the unit's own keys and values of the state with which they pass by
    propagate    the same keys and values, made when the unit is next run in that text: until then the state is kept
    global_last  one key for all units, the last one's: an experiment (`last_keys`)

The second and the third are equal in numbers. `project` reads the weights of keys and values for each token,
`propagate` for each time that somebody runs the unit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, NoReturn, get_args

import torch
from torch import Tensor, nn

from gossamer.borrowed import borrowed
from gossamer.routing import last_keys
from gossamer.routing.call import Call
from gossamer.routing.stack import Unit
from gossamer.serving.attending.routed import RoutedPass

KeyPolicy = Literal["sparse", "project", "propagate", "global_last"]
POLICIES: tuple[str, ...] = get_args(KeyPolicy)


class _KeysCaughtError(Exception):
    """A layer has handed its keys to the cache: what it would do next is not wanted."""


class _Catcher:
    """Stands for a cache, takes keys and values [1, heads, tokens, width], and ends the layer's work."""

    def update(self, keys: Tensor, values: Tensor, *args: Any, **keywords: Any) -> NoReturn:
        self.keys, self.values = keys[0].transpose(0, 1), values[0].transpose(0, 1)
        raise _KeysCaughtError


@contextmanager
def _without_queries(module: nn.Module) -> Iterator[None]:
    """Inside, projections to queries give zeros at no cost."""
    queries = [each for name, each in module.named_modules() if name.endswith("q_proj") and isinstance(each, nn.Linear)]

    def zeros(linear: nn.Linear) -> Callable[[Tensor], Tensor]:
        return lambda x: x.new_zeros(*x.shape[:-1], linear.out_features)

    with borrowed((each, zeros(each)) for each in queries):
        yield


def keys_of(
    unit: Unit, forward: Callable[..., Any], call: Call, states: Tensor, along: dict[str, Any]
) -> tuple[Tensor, Tensor]:
    """Keys and values [tokens, heads, width] that a unit makes of states [tokens, width]; nothing else of it runs."""
    catcher = _Catcher()
    mask = {"attention_mask": None} if "attention_mask" in call.keywords else {}
    with _without_queries(unit.module):
        try:
            call.run(forward, states[None], cache=catcher, **mask, **along)
        except _KeysCaughtError:
            return catcher.keys, catcher.values
    raise RuntimeError(f"{type(unit.module).__name__} handed no keys to its cache")


@dataclass(frozen=True, eq=False)
class Waiting:
    """Tokens of one text whose keys in a slot are not made yet: their states, and what goes along with them."""

    states: Tensor
    along: dict[str, Any]
    position: Tensor


class Keys:
    """Leaves keys by one of the policies.

    Args:
        units: those of the stack. slots: for each the list of keys in the cache that is its own.
    """

    def __init__(self, policy: KeyPolicy, units: Sequence[Unit], slots: Sequence[int]) -> None:
        self.policy, self.units, self.slots = policy, units, slots

    def begin(self, routed: RoutedPass) -> None:
        self.routed = routed
        self.total = routed.tokens
        if self.policy == "global_last":
            last_keys.cut(routed)

    def past(self, at: int, rows: Tensor | None, forward: Any, call: Call, rows_of: Any) -> Any:
        """The cache that a unit gets where the tokens `rows` run it; None: all."""
        slot = self.slots[at]
        if self.policy == "sparse":
            return self.routed.at(slot, rows)
        if self.policy == "global_last":
            return last_keys.LastKeys(self.routed, slot, rows)
        if self.policy == "propagate":
            self._make(at, rows, forward, call)
        if rows is None:
            return self.routed.at(slot, None)
        others = torch.ones(self.total, dtype=torch.bool, device=rows.device)
        others[rows] = False
        if self.policy == "propagate":
            others = self._wait(at, others, rows, call, rows_of)
        missed = others.nonzero()[:, 0]
        if not missed.numel():
            return self.routed.at(slot, rows)
        keys, values = self._keys(at, missed, forward, call, rows_of)
        return self.routed.at(slot, rows, known=(missed, keys, values))

    def nobody(self, at: int, forward: Any, call: Call, rows_of: Any) -> None:
        """No token of the pass runs the unit."""
        if self.policy in ("sparse", "global_last"):
            return
        every = torch.arange(self.total, device=call.states.device)
        if self.policy == "propagate":
            self._wait(at, torch.ones_like(every, dtype=torch.bool), every[:0], call, rows_of)
        else:
            keys, values = self._keys(at, every, forward, call, rows_of)
            self.routed.put(self.slots[at], self.routed.text, self.routed.position, keys, values)

    def _keys(self, at: int, rows: Tensor, forward: Any, call: Call, rows_of: Any) -> tuple[Tensor, Tensor]:
        states, along = _some(call, rows_of(rows))
        return keys_of(self.units[at], forward, call, states, along)

    def _wait(self, at: int, others: Tensor, rows: Tensor, call: Call, rows_of: Any) -> Tensor:
        """Keep the states of texts of which no token runs the unit; which of the others need keys now."""
        running = torch.zeros(self.routed.texts, dtype=torch.bool, device=others.device)
        running[self.routed.text[rows]] = True
        here = running[self.routed.text]
        for text in (~running).nonzero()[:, 0].tolist():
            mine = (self.routed.text == text).nonzero()[:, 0]
            if mine.numel():
                states, along = _some(call, rows_of(mine))
                self._list(text, at).append(Waiting(states, along, self.routed.position[mine]))
        return others & here

    def _list(self, text: int, at: int) -> list[Waiting]:
        waiting: list[Waiting] = self.routed.memory[text].setdefault(f"waiting {self.slots[at]}", [])
        # A text that was cut may have taken tokens back that were waiting.
        first = self.routed.first[text]
        while waiting and int(waiting[-1].position[-1]) >= first:
            last = waiting.pop()
            kept = int((last.position < first).sum())
            if kept:
                along = {name: _cut(value, kept) for name, value in last.along.items()}
                waiting.append(Waiting(last.states[:kept], along, last.position[:kept]))
        return waiting

    def _make(self, at: int, rows: Tensor | None, forward: Any, call: Call) -> None:
        """Make the keys of tokens that waited, of those texts that run the unit now."""
        texts = range(self.routed.texts) if rows is None else self.routed.text[rows].unique().tolist()
        lists = {text: self._list(text, at) for text in texts}
        every = [(text, each) for text, some in lists.items() for each in some]
        if not every:
            return
        states = torch.cat([each.states for _, each in every])
        along = {name: _joined([each.along[name] for _, each in every]) for name in every[0][1].along}
        keys, values = keys_of(self.units[at], forward, call, states, along)
        position = torch.cat([each.position for _, each in every])
        counts = torch.tensor([len(each.position) for _, each in every], device=position.device)
        text = torch.tensor([text for text, _ in every], device=position.device).repeat_interleave(counts)
        self.routed.put(self.slots[at], text, position, keys, values)
        for some in lists.values():
            some.clear()


def _some(call: Call, index: Tensor | None) -> tuple[Tensor, dict[str, Any]]:
    """States [tokens, width] at places of [batch * tokens], and what goes along with them, in one row."""

    def take(x: Tensor) -> Tensor:
        flat = x.reshape(-1, *x.shape[2:])
        return (flat if index is None else flat[index])[None]

    return take(call.states)[0], call.by_token(take)


def _joined(parts: list[Any]) -> Any:
    """Tensors [1, tokens, ...], or tuples of them, one after the other."""
    head = parts[0]
    if isinstance(head, Tensor):
        return torch.cat(parts, 1)
    return head if head is None else tuple(_joined(list(some)) for some in zip(*parts, strict=True))


def _cut(value: Any, count: int) -> Any:
    if isinstance(value, Tensor):
        return value[:, :count]
    return value if value is None else tuple(_cut(each, count) for each in value)
