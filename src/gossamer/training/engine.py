"""The engine all training methods share: hooks on an optimizer that keep a network sparse while it trains.

    before optimizer.step()   read the dense gradients if an update is due, then zero them outside the masks
    after  optimizer.step()   count the step, run the updates that are due, zero weights and states outside the masks

By then gradients are final: reduced over ranks, accumulated, unscaled and clipped. The user's loop does not change.
A method says when something happens (`events`), whether it reads gradients (`needs_gradient`), and which units each
layer keeps (`handle`); nothing is written before all of an event is decided.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from gossamer.pattern import Pattern
from gossamer.training import checkpoint, distributed, first_mask, followers, optimizer_state, shrinking, tile_rules
from gossamer.training.commit import commit
from gossamer.training.discover import check_ownership
from gossamer.training.rewiring import Change
from gossamer.training.select import rewire
from gossamer.training.settings import count as whole
from gossamer.training.state import State
from gossamer.training.weights import Layer

logger = logging.getLogger(__name__)


class Method(State):
    """Base of all training methods: a run (`State`) and what happens when.

    See `Settings` for the arguments and the subclasses for what each method does.
    """

    needs_dense: ClassVar[str] = ""  # why it cannot rewire layers that have memory for their tiles only

    @torch.inference_mode(False)  # what is made here serves training, wherever the method is made
    def __post_init__(self, density: float) -> None:
        super().__post_init__(density)
        others = sorted(kind.name for kind in _kinds(Method) if not kind.needs_dense)
        tile_rules.prepare(self, self.needs_dense, others)
        self._check_ownership()
        self._due: list[str] = []
        self._skipped = False
        self._stash: list[tuple[nn.Parameter, Tensor]] = []
        self._versions: dict[str, int] = {}
        self._reloaded = True
        self._begun = False  # whether a step was taken, or a state loaded
        self.first_mask = first_mask.choose(self)
        first_mask.notice_resume(self, within=False)
        units = self.initial_units()
        self.prepare()
        if self.is_distributed():
            distributed.broadcast(list(units.values()))
        for layer, chosen in units.items():  # all of them first: a refusal leaves every layer as it was
            layer.check_room(int(torch.count_nonzero(chosen)))
        for layer, chosen in units.items():
            layer.start(chosen, self.optimizer, seed=self.seed, fresh=self.first_mask == "random")
        self.apply()
        for tensor in self.tensors.values():
            self.ever_active.record(tensor)
        changes_shapes = getattr(self, "compact_every", None) or not all(layer.is_masked for layer in self.layers)
        self._handles = [
            self.optimizer.register_step_pre_hook(self._before_step),
            self.optimizer.register_step_post_hook(self._after_step),
            self.optimizer.register_load_state_dict_post_hook(self._after_load),
            *(distributed.watch(self.network, self._enter_wrapper) if changes_shapes else ()),
        ]
        self._want_gradients()

    # ------------------------------------------------------------------ what a method defines

    def prepare(self) -> None:
        """Check the method's own arguments and build what it needs. Raising here leaves everything untouched."""

    def first_budget(self) -> list[int]:
        """Units per layer of the first masks."""
        return self.budget

    def initial_units(self) -> Change:
        """The units of the first masks."""
        return first_mask.units(self, self.first_budget())

    def events(self, t: int) -> tuple[str, ...]:
        """Names of what happens at optimizer step t (1 is the first)."""
        return ("update",) if t % self.update_every == 0 and self.first_step <= t < self.last_step else ()

    def needs_gradient(self, event: str) -> bool:
        """Whether an event reads dense gradients."""
        return False

    def observe(self, gradients: Mapping[str, Tensor]) -> None:
        """Called at every step with the dense gradients, for methods that follow them."""

    def handle(self, event: str, t: int) -> tuple[Change, dict[str, Any]]:
        """Decide an event: the units of each layer that changes, and what to note in the history."""
        return {}, {}

    def settle(self) -> None:
        """Called at the end of every optimizer step, when all its events are done."""

    def extra_state(self) -> dict[str, Any]:
        """What the method adds to `state_dict`."""
        return {}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """Take back `extra_state`."""

    # ------------------------------------------------------------------ what a method uses

    def dynamic(self) -> list[Layer]:
        """Layers that may change now: trained ones, and in an event that reads gradients those that it can score."""
        return [layer for layer in self.trained() if layer.tensor.name not in self.blind]

    def scored(self, name: str) -> bool:
        """Whether there is a gradient to score this parameter by."""
        return name in self.gradients.now

    def exchanged(self, active: Tensor, share: float, drop_scores: Tensor, grow_scores: Tensor) -> Tensor:
        """bool[units]: a layer after it dropped and grew floor(share * nnz) of its `active` units."""
        count = int(share * int(torch.count_nonzero(active)))
        if not self.regrow_dropped:
            count = min(count, active.numel() - int(torch.count_nonzero(active)))
        return rewire(
            active, drop=count, grow=count, drop_scores=drop_scores, grow_scores=grow_scores, regrow=self.regrow_dropped
        )

    # ------------------------------------------------------------------ what a user calls

    def __repr__(self) -> str:
        total = sum(self.sizes.values())
        return f"{type(self).__name__}(step {self.step} of {self.total_steps}, {self.nnz():,} of {total:,} weights)"

    @torch.inference_mode(False)
    def patterns(self) -> dict[str, Pattern]:
        """The masks as `gossamer.pattern.Pattern` of the 2-D view [out, in * kernel], in tiles of `tile`."""
        tile = self.tile[0], self.tile[1]
        return {name: tensor.pattern(tile) for name, tensor in self.tensors.items() if tensor.prunable}

    @torch.inference_mode(False)
    @torch.no_grad()
    def apply_to(self, copy: nn.Module) -> nn.Module:
        """Zero the masked weights of a copy of the network (an EMA or SWA average), in place; returns it.

        A copy from before a compaction loses the channels that the network has lost.

        Raises:
            ValueError: the copy lacks a masked parameter or has it in another shape.
        """
        return followers.apply_to(self, copy)

    @torch.inference_mode(False)
    def follow(self, copy: nn.Module) -> nn.Module:
        """Let a copy of the network lose the channels that `compact_every` removes, now and later; returns it.

        An `AveragedModel` follows by itself whenever it is updated. Any other copy that is used between steps (an EMA
        of your own, a teacher) is named here once. The method does not keep it alive.

        Raises:
            ValueError: `copy` is no copy of the network.
        """
        return followers.add(self, copy)

    @torch.inference_mode(False)
    def state_dict(self) -> dict[str, Any]:
        """All a resumed run needs, as tensors, numbers, strings, lists and dicts; masks take one bit a weight."""
        return checkpoint.save(self, self.extra_state())

    @torch.inference_mode(False)
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict()`; with the model's and optimizer's own states the run goes on bit for bit.

        A method made with more `total_steps` than the state has makes the run longer, as `extend` does.

        Raises:
            ValueError: the state belongs to another method, other arguments, or another network; nothing is changed.
        """
        checkpoint.load(self, state, self.extra_state())
        self.load_extra_state(state["extra"])
        self._begun = self._reloaded = True
        self.apply()
        self._want_gradients()

    @torch.inference_mode(False)
    def extend(self, total_steps: int) -> None:
        """Make the run longer than first said: from the next step on it goes by the plan of `total_steps`.

        What has been done stays. Every schedule, `start`, `stop` and the other fractions of total_steps are then those
        of a run that was to have so many steps from its beginning: what fell to an end (drop_fraction, mutation, the
        soft memory bound) may rise again, while channels and weights that a falling budget has taken do not come back
        before the new plan has caught up. The run ends on the same number of weights and channels.

        Args:
            total_steps: steps of the whole run, those that have been taken included.

        Raises:
            ValueError: fewer than now.

        Example:
            >>> from gossamer.training import Static
            >>> model = torch.nn.Linear(20, 10)
            >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            >>> method = Static(model, optimizer, density=0.1, total_steps=16)
            >>> method.extend(24)
            >>> method
            Static(step 0 of 24, 20 of 200 weights)
        """
        whole("total_steps", total_steps)
        if total_steps < self.total_steps:
            raise ValueError(
                f"total_steps must be at least {self.total_steps}, the length of the run, got {total_steps}: a run can "
                "be made longer, but not shorter"
            )
        self.total_steps = total_steps
        self._want_gradients()

    def detach(self) -> None:
        """Remove the hooks: masks stay readable; training goes on dense, or on the tiles there are."""
        for handle in self._handles:
            handle.remove()
        for tensor in self.tensors.values():
            tensor.want_gradient(False, self.step)

    # ------------------------------------------------------------------ hooks
    # Not traced where the optimizer's step is compiled: a broken frame frees memory whose address a kernel still has.

    @torch._disable_dynamo
    def _before_step(self, optimizer: Optimizer, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        self._skipped = optimizer_state.step_is_skipped(optimizer)
        if self._skipped:
            return None
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        if closure is None:
            self._prepare_step()
            return None

        def with_masked_gradients() -> Any:
            loss = closure()
            self._prepare_step()
            return loss

        return args[:1], {**kwargs, "closure": with_masked_gradients}

    @torch.no_grad()
    def _prepare_step(self) -> None:
        t = self.step + 1
        if self.untraced:
            raise RuntimeError(
                f"no forward pass of the model, {type(self.network).__name__}, was seen before the first step: pass "
                "example_inputs to trace its channels, or the part of it that the training loop calls"
            )
        if not self._begun:
            first_mask.notice_resume(self, within=True)
            self._begun = True
        due, waiting = self.events(t), self.pending
        runnable = [*waiting, *(event for event in due if event not in waiting)]
        reads = [event for event in runnable if self.needs_gradient(event)]
        self._read_gradients(t, ranks=bool(reads))
        names = {layer.tensor.name for layer in self.trained()}
        self.blind = {name for name in names if not self.scored(name)} if reads else set()
        waits = bool(names) and self.blind == names  # no gradient at all, as in a step without a backward pass
        if waits and any(event in waiting for event in due):
            logger.warning("step %d: updates wait, no gradient has come to any layer", t)
        self.pending = runnable
        self._due = [event for event in runnable if not (waits and event in reads)]
        for name, tensor in self.tensors.items():
            if tensor.mask.device != tensor.parameter.device:
                tensor.mask = tensor.mask.to(tensor.parameter.device)
            if self._reloaded or self._versions.get(name) != tensor.parameter._version:
                tensor.check(t)
                self.apply_mask(tensor)  # somebody else wrote to the weight: load_state_dict, an EMA swap, ...
            else:
                tensor.keep()  # writes through `.data` or numpy are not counted
        if self._due and self.replace_step:
            # an optimizer passes over parameters without gradient, moments and step counters included
            held = [p for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
            self._stash = [(p, p.grad) for p in held if p.grad is not None]
            for p in held:
                p.grad = None
            return
        for tensor in self.tensors.values():
            tensor.hide()
        self.warmup.hold(self.tensors)

    @torch._disable_dynamo
    @torch.no_grad()
    def _after_step(self, optimizer: Optimizer, args: tuple, kwargs: dict) -> None:
        if self._skipped:
            return
        for parameter, gradient in self._stash:
            parameter.grad = gradient
        self._stash = []
        self.warmup.clamp(self.tensors, optimizer)
        self.step += 1
        if self._reloaded or not optimizer_state.keeps_zeros(optimizer):
            self.apply()
        self._reloaded = False
        for event in self._due:
            before = self.nnz()
            changes, note = self.handle(event, self.step) if self.trained() else ({}, {})
            grown = commit(self, changes)
            self.pending.remove(event)
            nnz = self.nnz()
            counts = {"nnz": nnz, "density": self.density(), "dropped": before + grown - nnz, "grown": grown}
            self.history.append({"step": self.step, "kind": event, **counts, **note})
            logger.info("%s step %d %s: %s", self.name, self.step, event, self.history[-1])
            if self.is_distributed():
                distributed.check_agreement(list(self.tensors.values()), self.step)
        if any(self.needs_gradient(event) for event in self._due):
            self.gradients.close((layer.tensor.name for layer in self.trained()), self.step)
        self.settle()
        self._due, self.blind, self.gradients.now = [], set(), {}
        self._versions = {name: tensor.parameter._version for name, tensor in self.tensors.items()}
        self._want_gradients()

    def _after_load(self, optimizer: Optimizer) -> None:
        self._reloaded = True

    def _enter_wrapper(self) -> None:
        """The network runs inside DistributedDataParallel, which may have come after this method."""
        tile_rules.fix(self)
        if getattr(self, "compact_every", None):
            shrinking.refuse_wrapped()

    # ------------------------------------------------------------------ inside

    def _want_gradients(self) -> None:
        """Tell the tensors whether the next step reads their dense gradients."""
        wanted = any(self.needs_gradient(event) for event in (*self.pending, *self.events(self.step + 1)))
        for name, tensor in self.tensors.items():
            tensor.want_gradient(wanted or self.gradients.awaited(name), self.step + 1)

    def _read_gradients(self, t: int, *, ranks: bool) -> None:
        """Read what step t needs: for its own events (`ranks`), a window, an average, the next update."""
        follows = type(self).observe is not Method.observe
        soon = range(t, t + self.grad_window)
        every = ranks or follows or any(self.needs_gradient(event) for s in soon for event in self.events(s))
        present = self.gradients.read(self.tensors.values(), self.optimizer, t, every=every, ranks=ranks)
        if every:
            self.observe(present)

    def _check_ownership(self) -> None:
        if self.distributed and distributed.ranks() == 1:
            raise RuntimeError("distributed=True needs torch.distributed to be initialised with more than one rank")
        hooks = self.optimizer._optimizer_step_pre_hooks.values()
        owners = [getattr(hook, "__self__", None) for hook in hooks]
        taken = {id(x.parameter) for method in owners if isinstance(method, Method) for x in method.tensors.values()}
        check_ownership(self.tensors, self.optimizer, taken)


def _kinds(base: type[Method]) -> Iterator[type[Method]]:
    """The methods there are: classes with a name of their own."""
    for kind in base.__subclasses__():
        if "name" in vars(kind):
            yield kind
        yield from _kinds(kind)
