"""Finding the channels of a run's network: from example inputs, or when its first batch comes."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from gossamer.compaction import ChannelGraph
from gossamer.training.channels import Channels
from gossamer.training.state import State
from gossamer.wrappers import wrapped_as

logger = logging.getLogger(__name__)


def find(state: State, example_inputs: Any) -> Channels:
    """The channels of the run's network that may be removed and are trained.

    Groups with a member that is frozen (requires_grad=False) or outside the optimizer are left out.
    """
    graph = ChannelGraph.build(state.network, example_inputs)
    held = {id(p) for group in state.optimizer.param_groups for p in group["params"]}
    groups, stays = [], {}
    for group in graph.removable:
        parameters = {m.tensor: state.network.get_parameter(m.tensor) for m in group.members if m.role != "stat"}
        frozen = [f"{name} is frozen" for name, p in parameters.items() if not p.requires_grad]
        absent = [
            f"{n} is not in this optimizer" for n, p in parameters.items() if p.requires_grad and id(p) not in held
        ]
        if frozen or absent:
            stays[group.name] = ", ".join(frozen + absent)
            logger.info("channels of %s stay: %s", group.name, stays[group.name])
        else:
            groups.append(group)
    return Channels.of(state.network, graph, groups, stays)


def watch(state: State, example_inputs: Any, use: Callable[[Channels], None]) -> None:
    """Call `use` with the network's channels: now, or at the first forward when there are no example inputs.

    Raises:
        ValueError: a compiled model without example inputs, as compiled code cannot call back.
    """
    if example_inputs is not None:
        use(find(state, example_inputs))
        return
    if _compiled(state.model):
        raise ValueError(
            "a compiled model needs example_inputs: its channels cannot be traced from inside compiled code"
        )
    handle = state.network.register_forward_pre_hook(_FirstForward(state, use), with_kwargs=True)
    state.network.__dict__["_forward_pre_hooks"][handle.id].handle = handle
    state.untraced = True


def _compiled(model: nn.Module) -> bool:
    """Whether calls of the model run compiled code, where it stands among its wrappers."""
    while True:
        if type(model).__name__ == "OptimizedModule" or getattr(model, "_compiled_call_impl", None) is not None:
            return True
        attribute = wrapped_as(model)
        if attribute is None:
            return False
        model = getattr(model, attribute)


class _FirstForward:
    """A forward hook that traces the network once; copies and pickles of the network carry an inert one."""

    def __init__(self, state: State | None = None, use: Callable[[Channels], None] | None = None) -> None:
        self.state, self.use = state, use
        self.handle: Any = None

    def __call__(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        if self.state is None or self.use is None:
            return
        if torch.compiler.is_compiling():
            raise RuntimeError("a compiled model needs example_inputs: pass them to the training method")
        if torch.is_inference_mode_enabled():
            return  # a trace made in inference mode could not serve training: the next forward comes
        if args and kwargs:
            raise ValueError("the model takes positional and keyword arguments: pass example_inputs to the method")
        state, use, self.state = self.state, self.use, None
        self.handle.remove()
        use(find(state, args or kwargs))
        state.untraced = False
        if state.saved_channels is not None and state.removed is not None:
            state.removed.check_state_dict(state.saved_channels)
            state.removed.load_state_dict(state.saved_channels)
            state.saved_channels = None

    def __reduce__(self) -> tuple[type, tuple]:
        return _FirstForward, ()

    def __deepcopy__(self, memo: dict) -> _FirstForward:
        return _FirstForward()
