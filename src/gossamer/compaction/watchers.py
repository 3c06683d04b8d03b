"""Forward hooks that only watch: they are found in a real forward, and idle wherever we run a user's model ourselves.

A log, a monitor or a feature extractor does not change what is computed, but under tracing it would be fed fake
tensors, and what it does with them becomes part of the program or stops it. A hook is told apart by one forward with
all of them and one without those that seem to watch. Registrations are known by the numbers of their handles, which
copies of a model share.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from .captured import tensor_leaves


class _Hook(NamedTuple):
    path: str
    own: dict[int, Any]  # the module's dict of them, never replaced: handles hold it
    number: int
    call: Callable[..., Any]


def _hooks(model: nn.Module) -> list[_Hook]:
    return [
        _Hook(path, module._forward_hooks, number, call)
        for path, module in model.named_modules()
        for number, call in module._forward_hooks.items()
    ]


@contextlib.contextmanager
def _replaced(hooks: list[_Hook], by: Callable[[_Hook], Callable[..., Any]]) -> Iterator[None]:
    """Other functions under the same numbers: order, options and handles stay, and a hook may remove itself."""
    for hook in hooks:
        hook.own[hook.number] = by(hook)
    try:
        yield
    finally:
        for hook in hooks:
            if hook.number in hook.own:
                hook.own[hook.number] = hook.call


def _idle(*given: Any, **options: Any) -> None:
    return None


@contextlib.contextmanager
def quiet(model: nn.Module, watches: Mapping[int, bool]) -> Iterator[None]:
    """Inside, hooks that only watch see nothing; `watches` is from `judged`."""
    with _replaced([hook for hook in _hooks(model) if watches.get(hook.number)], lambda _: _idle):
        yield


def judged(model: nn.Module, inputs: Any, run: Callable[[], Any], known: Mapping[int, bool]) -> dict[int, bool]:
    """Whether each forward hook only watches, by number; those in `known` are not asked again.

    `run` is a forward of `model` on `inputs`. A hook stays that returned something, wrote to its operands or to the
    model's state, was not called, left a tensor behind that the forward reads, or without which outputs differ.
    """
    new = [hook for hook in _hooks(model) if hook.number not in known]
    if not new:
        return dict(known)
    notes = _Notes(model, inputs)
    with _replaced(new, notes.listening), quiet(model, known):
        expected = tensor_leaves(run())
    watches = {**known, **{hook.number: hook.number in notes.called - notes.busy for hook in new}}
    seeming = [hook.number for hook in new if watches[hook.number]]
    if seeming:
        reads = _Reads(notes.left())
        try:
            with quiet(model, watches), reads:
                found = tensor_leaves(run())
        except Exception:  # it needs one of them, and it cannot be told which
            reads.fed.update(seeming)
        else:
            reads.look(found)
            if not _alike(expected, found):
                reads.fed.update(seeming)
        watches.update(dict.fromkeys(reads.fed.intersection(seeming), False))
    return watches


def _alike(expected: list[Tensor], found: list[Tensor]) -> bool:
    def same(a: Tensor, b: Tensor) -> bool:
        return a.shape == b.shape and a.dtype == b.dtype and bool(((a == b) | ((a != a) & (b != b))).all())

    return len(expected) == len(found) and all(same(a, b) for a, b in zip(expected, found, strict=True))


def _memory(tensor: Tensor) -> StorageWeakRef | None:
    """What `tensor` lies in, without keeping it alive; its number is not used again while the reference is held."""
    try:
        return StorageWeakRef(tensor.untyped_storage())
    except (NotImplementedError, RuntimeError):  # sparse and other layouts have none
        return None


class _Notes(TorchDispatchMode):
    """What hooks do in a real forward. As a mode it is on while one runs, to see which tensors that makes."""

    supports_higher_order_operators = True

    def __init__(self, model: nn.Module, inputs: Any) -> None:
        super().__init__()
        self.state: list[dict[str, Any]] = [
            tensors for module in model.modules() for tensors in (module._parameters, module._buffers) if tensors
        ]
        state = [tensor for tensors in self.state for tensor in tensors.values() if tensor is not None]
        # An identity gives its operand itself, which every forward reads.
        shared = [*state, *(leaf for leaf in pytree.tree_leaves(inputs) if isinstance(leaf, Tensor))]
        self.shared = {ref.cdata: ref for tensor in shared if (ref := _memory(tensor)) is not None}
        self.called: set[int] = set()
        self.busy: set[int] = set()
        self.held: dict[int, tuple[StorageWeakRef, set[int]]] = {}
        self.number = 0

    def listening(self, hook: _Hook) -> Callable[..., Any]:
        def listen(*given: Any) -> Any:
            self.number = hook.number
            self.called.add(hook.number)
            call, operands = hook.call, [leaf for part in given[1:] for leaf in tensor_leaves(part)]
            before = self._written(operands)
            self._hold(operands)
            with self:
                result = call(*given)
            if result is not None or self._written(operands) != before:
                self.busy.add(hook.number)
            return result

        listen.__qualname__ = _named(hook.call)
        return listen

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self._hold([leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor)])
        return result

    def _written(self, operands: list[Tensor]) -> list[tuple[int, int]]:
        state = [tensor for tensors in self.state for tensor in tensors.values() if tensor is not None]
        # Tensors of a forward with an inference mode of its own count no writes; the outputs tell them.
        return [(id(tensor), 0 if tensor.is_inference() else tensor._version) for tensor in (*operands, *state)]

    def _hold(self, tensors: list[Tensor]) -> None:
        for tensor in tensors:
            ref = _memory(tensor)
            if ref is not None and ref.cdata not in self.shared:
                self.held.setdefault(ref.cdata, (ref, set()))[1].add(self.number)

    def left(self) -> dict[int, set[int]]:
        """Memory that somebody has kept beyond the forward -> the hooks that had it."""
        return {key: numbers for key, (ref, numbers) in self.held.items() if not ref.expired()}


class _Reads(TorchDispatchMode):
    """Which hooks a forward without them depends on: `fed` has those whose tensors an operator reads."""

    supports_higher_order_operators = True

    def __init__(self, left: dict[int, set[int]]) -> None:
        super().__init__()
        self.left, self.fed = left, set[int]()

    def look(self, values: Any) -> None:
        for leaf in pytree.tree_leaves(values) if self.left else ():
            if isinstance(leaf, Tensor) and (ref := _memory(leaf)) is not None:
                self.fed |= self.left.get(ref.cdata, set())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.look((args, kwargs))
        return func(*args, **(kwargs or {}))


def hooks_to_blame(model: nn.Module, error: BaseException, watches: Mapping[int, bool]) -> str:
    """The hook that `error` came through, or else those that a trace cannot do without; "" if there is none."""
    names = {id(module): path for path, module in model.named_modules()}
    found, trace = "", error.__traceback__
    while trace is not None and trace.tb_next is not None:
        seen = trace.tb_frame.f_locals
        call, module = seen.get("call", seen.get("hook")), seen.get("self")
        module = seen["given"][0] if seen.get("given") else module
        if id(module) in names and call is not None and trace.tb_next.tb_frame.f_code is _code(call):
            found = f"it fails in the hook {_named(call)} of {names[id(module)] or 'the root'!r}"
        trace = trace.tb_next
    if found:
        return found
    stay = [
        f"{_named(hook.call)} of {hook.path or 'the root'!r}" for hook in _hooks(model) if not watches.get(hook.number)
    ]
    for path, module in model.named_modules():
        calls = [call for call in module._forward_pre_hooks.values() if not _from_torch(call)]
        stay += [f"{_named(call)} of {path or 'the root'!r}" for call in calls]
    rest = f" and {len(stay) - 3} more" if len(stay) > 3 else ""
    return f"hooks that take part in it: {', '.join(stay[:3])}{rest}" if stay else ""


def _plain(call: Any) -> Any:
    while isinstance(call, functools.partial):
        call = call.func
    return getattr(call, "__func__", call)


def _code(call: Any) -> Any:
    plain = _plain(call)
    return getattr(plain, "__code__", None) or getattr(type(plain).__call__, "__code__", None)


def _named(call: Any) -> str:
    return str(getattr(_plain(call), "__qualname__", type(call).__name__))


def _from_torch(call: Any) -> bool:
    """Old weight_norm and spectral_norm are part of what is traced."""
    return str(getattr(_plain(call), "__module__", "")).partition(".")[0] == "torch"
