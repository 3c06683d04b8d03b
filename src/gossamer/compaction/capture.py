"""Capture a model as one ATen graph with fake tensors, naming which inputs are its parameters and buffers.

Two routes give the same kind of graph: "export" (`torch.export`, non-strict, then functionalised without
decomposing composite operators) and "fx" (`make_fx` over `torch.func.functional_call`). Both trace with fake
tensors, so a branch that depends on values fails loudly instead of being baked in.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from gossamer.measure.count import call_arguments
from gossamer.wrappers import full_precision, has_forward, seen_through

from .borrow import duplicate, evaluating, from_inference, ordinary, refuse_shards, undisturbed
from .captured import Capture, CaptureError, tensor_leaves
from .functional import functional_leftovers, made_functional, without_grad_modes, without_logs
from .names import first_names, state_tensors
from .rules.table import module_path, op_name
from .watchers import hooks_to_blame, judged, quiet

logger = logging.getLogger(__name__)

ROUTES = ("auto", "export", "fx")


@contextlib.contextmanager
def _traceable() -> Iterator[None]:
    """Tracing conditions: gradients on and no fused transformer encoder, which would hide a whole layer in one op.

    Vendor libraries have recurrent layers as one operator each; without them those are taken apart into steps.
    What a failed route writes to stderr (the whole graph, and a log line) is kept out: the error says it in one line.
    Nodes keep no stack traces, which nobody reads and which take an eighth of the time.
    """
    silent = getattr(fx.config, "do_not_emit_stack_traces", None)  # older versions of torch have no such setting
    fast = torch.backends.mha.get_fastpath_enabled()
    # Not torch.backends.cudnn.flags, which sets precisions too and cannot always put them back.
    vendors = torch._C._get_mkldnn_enabled(), torch._C._get_cudnn_enabled()
    names = ("torch.fx.experimental.symbolic_shapes", "torch._subclasses.fake_tensor")
    levels = {name: logging.getLogger(name).level for name in names}
    torch.backends.mha.set_fastpath_enabled(False)
    _enable_vendors(False, False)
    if silent is not None:
        fx.config.do_not_emit_stack_traces = True
    for name in names:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        with (
            torch.enable_grad(), warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO())
        ):  # fmt: skip
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        _enable_vendors(*vendors)
        if silent is not None:
            fx.config.do_not_emit_stack_traces = silent
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


def _enable_vendors(mkldnn: bool, cudnn: bool) -> None:
    torch._C._set_mkldnn_enabled(mkldnn)
    torch._C._set_cudnn_enabled(cudnn)


@torch.inference_mode(False)
def capture(
    model: nn.Module, example_inputs: Any, *, route: str = "auto", watches: Mapping[int, bool] | None = None
) -> Capture:
    """Trace `model` in eval mode on `example_inputs`, after one forward pass: what modules build at the first call of
    a shape and keep (grids, masks, rotary tables) is a constant then, whether or not they had it before.

    Forward hooks that only watch have no part in it: they see one forward on the real inputs, or none if `watches`
    (an earlier capture's) has them.

    Raises:
        ValueError: `route` is unknown, or a lazy module has no shape yet.
        TypeError: the inputs are not a tensor, tuple or dict, the parameters are cut into shards, or the module has no
            forward.
        CaptureError: no route could trace the model; the message holds each route's cause.
    """
    if route not in ROUTES:
        raise ValueError(f"route must be one of {ROUTES}, got {route!r}")
    refuse_shards(model)
    if not has_forward(model):
        parts = [name for name, child in model.named_children() if next(child.parameters(), None) is not None]
        raise TypeError(f"{type(model).__name__} has no forward to trace: pass a network inside it, of {parts}")
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if nn.parameter.is_lazy(tensor):
            raise ValueError(f"{name} has no shape yet (lazy module): run one forward before building the graph")
    args, kwargs = ordinary(call_arguments(example_inputs))
    model = duplicate(model) if from_inference(model) else model
    own = set(state_tensors(model))
    causes: list[str] = []
    paths: tuple[str, ...] = ("",)
    blame = ""
    watches = watches or {}

    def forward() -> Any:
        torch.manual_seed(0)
        return model(*args, **kwargs)

    for name, trace in (("export", _export), ("fx", _fx)):
        if route not in ("auto", name):
            continue
        try:
            with undisturbed(model), evaluating(model), seen_through(model), full_precision():
                with torch.no_grad(), warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # the user's own calls have shown them
                    with undisturbed(model):
                        watches = judged(model, (args, kwargs), forward, watches)
                    with quiet(model, watches):
                        forward()
                with _traceable(), quiet(model, watches):
                    found = _without_new(trace(model, args, kwargs), own, model)
                _check_sizes(found)
                return dataclasses.replace(found, watches=watches)
        except Exception as error:
            logger.debug("route %s failed", name, exc_info=True)
            paths = paths if causes else _running(model, error)
            blame = blame or hooks_to_blame(model, error, watches)
            text = str(error).strip() or "no message"
            causes.append(f"{name}: {type(error).__name__}: {text.splitlines()[0]}")
    name = type(model).__name__
    text = f"{name} cannot be captured as one graph, so nothing can be removed safely. {' | '.join(causes)}"
    raise CaptureError(f"{text} ({blame})" if blame else text, causes, paths)


def _check_sizes(found: Capture) -> None:
    """Raise ValueError for sizes that only values know: which positions they have can not be said beforehand."""
    for node in found.calls:
        for value in pytree.tree_leaves(node.meta.get("val")):
            if isinstance(value, Tensor) and any(isinstance(size, torch.SymInt) for size in value.shape):
                path = module_path(node)
                place = f" in {path}" if path else ""
                raise ValueError(f"how many elements {op_name(node)}{place} gives depends on values")


def _without_new(found: Capture, own: set[str], model: nn.Module) -> Capture:
    """Buffers that the first forward has registered are constants: the model does not keep them."""
    state = state_tensors(model)
    new = {node: state[name].detach().clone() for node, name in found.tensors.items() if name not in own}
    tensors = {node: name for node, name in found.tensors.items() if node not in new}
    return dataclasses.replace(found, tensors=tensors, constants={**found.constants, **new})


def _running(model: nn.Module, error: BaseException) -> tuple[str, ...]:
    """Paths of the modules whose methods `error` came through, innermost first; the root at least."""
    names = {id(module): path for path, module in model.named_modules()}
    found: list[str] = []
    frame = error.__traceback__
    while frame is not None:
        path = names.get(id(frame.tb_frame.f_locals.get("self")))
        if path is not None:
            found.append(path)
        frame = frame.tb_next
    return tuple(dict.fromkeys([*reversed(found), ""]))


def _export(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Capture:
    program = torch.export.export(model, args, kwargs, strict=False)
    names = program.graph_signature.inputs_to_parameters
    without_grad_modes(program.graph_module, {node for node in program.graph.nodes if node.name in names})
    if not made_functional(program.graph):
        program = program.run_decompositions({})
    without_logs(program.graph)
    signature = program.graph_signature
    first = first_names(model)
    nodes = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    state = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    lifted = signature.inputs_to_lifted_tensor_constants
    output = next(node for node in reversed(program.graph.nodes) if node.op == "output")
    written = signature.buffers_to_mutate
    results = [node for node in pytree.tree_leaves(output.args) if isinstance(node, fx.Node)]
    return Capture(
        graph=program.graph,
        tensors={nodes[name]: first[target] for name, target in state.items() if target in first},
        constants={nodes[name]: program.constants[target] for name, target in lifted.items()},
        inputs={nodes[name]: name for name in signature.user_inputs if isinstance(name, str) and name in nodes},
        outputs=tuple(node for node in results if node.name not in written),
        writes=tuple((node, first[written[node.name]]) for node in results if node.name in written),
        route="export",
    )


@contextlib.contextmanager
def _naming_modules(model: nn.Module) -> Iterator[None]:
    """Note in every traced node which module's forward made it, as `torch.export` does."""
    from torch.fx import traceback

    stack: list[contextlib.ExitStack] = []

    def enter(path: str) -> None:
        stack.append(contextlib.ExitStack())
        stack[-1].enter_context(traceback.annotate({"module": path}))

    hooks = []
    for path, module in model.named_modules():
        hooks.append(module.register_forward_pre_hook(lambda *_, path=path: enter(path), prepend=True))
        hooks.append(module.register_forward_hook(lambda *_: stack.pop().close(), always_call=True))
    try:
        with traceback.preserve_node_meta():
            yield
    finally:
        for hook in hooks:
            hook.remove()
        for entry in reversed(stack):
            entry.close()


def _fx(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Capture:
    from torch.fx.experimental.proxy_tensor import make_fx

    state = state_tensors(model)
    leaves, spec = pytree.tree_flatten((args, kwargs))
    places = [index for index, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
    buffers = dict(model.named_buffers())

    def forward(values: list[Tensor], inputs: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        filled = list(leaves)
        for place, value in zip(places, inputs, strict=True):
            filled[place] = value
        call_args, call_kwargs = pytree.tree_unflatten(filled, spec)
        named = dict(zip(state, values, strict=True))
        output = torch.func.functional_call(model, named, call_args, call_kwargs, tie_weights=True)
        return tensor_leaves(output), [named[name] for name in buffers]

    functional = torch.func.functionalize(forward, remove="mutations_and_views")
    with _naming_modules(model):
        trace = make_fx(functional, tracing_mode="fake", _allow_non_fake_inputs=True)  # modules keep real tensors
        module = trace(list(state.values()), [leaves[place] for place in places])
    module.graph.eliminate_dead_code()
    functional_leftovers(module.graph)
    placeholders = [node for node in module.graph.nodes if node.op == "placeholder"]
    output = next(node for node in reversed(module.graph.nodes) if node.op == "output")
    names = list(state)
    constants = {node: getattr(module, str(node.target)) for node in module.graph.nodes if node.op == "get_attr"}
    tensors = dict(zip(placeholders, names, strict=False))
    results = pytree.tree_leaves(output.args)
    final = zip(results[len(results) - len(buffers) :], buffers, strict=True)
    return Capture(
        graph=module.graph,
        tensors=tensors,
        constants={node: value for node, value in constants.items() if isinstance(value, Tensor)},
        inputs={node: f"input {i}" for i, node in enumerate(placeholders[len(names) :])},
        outputs=tuple(node for node in results[: len(results) - len(buffers)] if isinstance(node, fx.Node)),
        writes=tuple((node, name) for node, name in final if isinstance(node, fx.Node) and node not in tensors),
        route="fx",
    )
