"""Dense products by the fastest engine at their shape: x[m, k] @ weight[n, k]^T + bias, float32 on a CPU.

    torch            torch's own mm: MKL in the usual builds for x86
    onednn           oneDNN, with the weight as it lies
    onednn packed    oneDNN, with the weight in an order of its own, which is kept where the caller asked: keep_packed
    mkl packed       MKL's packed product, whose pack is for one number of rows: for benchmarks, not for layers
    gossamer         our kernels: for few rows the one that reads the weight once (`few_rows`), else that for products
                     with zeros, told that every row is there

Which is fastest differs between processors by a factor of two, and between shapes. A `Tuner` for each shape and number
of threads lets them take turns on the user's own calls. Their results differ by rounding. `pin` names one for all.

torch's own alone is taken for small products, other dtypes and devices, deterministic algorithms, autocast, graphs and
traces, transforms of torch.func, float32 products of lower precision, and where somebody compares what autograd saves.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._C import _functorch
from torch.autograd import forward_ad

from gossamer.measure import clock
from gossamer.ops.autograd import Differentiable, save, saving_is_watched, wants_gradient
from gossamer.ops.few_rows import FEW, FewRows
from gossamer.ops.gathered import gather_mm_on
from gossamer.ops.packs import KeptPacks
from gossamer.pattern.build import index_dtype
from gossamer.planner import Tuner
from gossamer.planner.tuner.trial import DENSE

TORCH = "torch"
LEAST = 1 << 24
"""Multiplications below which a product is torch's: some 0.2 ms of one core."""
LEAST_READ = 1 << 20
"""Elements of a weight that few rows are worth asking for in spite of that: to read them takes as long."""

_QUESTION = "product"
_CALL = 2e-6  # seconds of Python around a product that is not torch's
_MOST_SHAPES = 1024
_EXACT_SHAPES = 64  # further ones share a call site with shapes up to twice as large: lengths that hardly come again
_PLAIN = (Tensor, torch.nn.Parameter)
_EXACT = ("none", "ieee")  # what torch says where its CPU products may not round operands

Run = Callable[[Tensor, Tensor, Tensor | None], Tensor]
Ready = Callable[[Tensor, Tensor | None], Tensor]


@dataclass(frozen=True)
class Engine:
    """One way to multiply.

    Attributes:
        missing: why this machine does not have it; None if it does.
        prepare: weight, rows of x -> the product with that weight, as a function of x and bias: packed once.
        run: x, weight, bias -> the product; None for an engine whose pack is of no use in another call.
        packs: it keeps a copy of the weight.
    """

    name: str
    missing: Callable[[], str | None]
    prepare: Callable[[Tensor, int], Ready]
    run: Run | None
    packs: bool = False


def _of(run: Run) -> Callable[[Tensor, int], Ready]:
    """`prepare` of an engine that prepares nothing."""

    def prepare(weight: Tensor, rows: int) -> Ready:
        return lambda x, bias: run(x, weight, bias)

    return prepare


_PACKS = KeptPacks()
_ONE_TILE = (  # offsets and indices of a pattern of one tile, which is all of x
    torch.tensor([0, 1], device="cpu"),
    torch.zeros(1, dtype=index_dtype(1), device="cpu"),
)


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    y: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return y


def _onednn_pack(weight: Tensor) -> Tensor:
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous())
    return packed


def _onednn_packed(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return _onednn(x, _PACKS.get(weight, "onednn", _onednn_pack), bias)


def _onednn_prepared(weight: Tensor, rows: int) -> Ready:
    packed = _onednn_pack(weight)
    return lambda x, bias: _onednn(x, packed, bias)


def _mkl_prepared(weight: Tensor, rows: int) -> Ready:
    weight = weight.contiguous()
    packed = torch.ops.mkl._mkl_reorder_linear_weight(weight, rows)
    return lambda x, bias: torch.ops.mkl._mkl_linear(x, packed, weight, bias, rows)


def _gossamer(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if x.shape[0] <= FEW[torch.float32] and weight.is_contiguous():
        few: Tensor = FewRows.compute(x, weight, bias)
        return few
    y: Tensor = gather_mm_on("cpu")(x, *_ONE_TILE, x.shape[0], x.shape[1], weight.t().unsqueeze(0), False)
    return y if bias is None else y.add_(bias)


@cache
def _onednn_missing() -> str | None:
    if not torch.backends.mkldnn.is_available():
        return "this build of torch has no oneDNN"
    lacks = [op for op in ("_linear_pointwise", "_reorder_linear_weight") if not hasattr(torch.ops.mkldnn, op)]
    return f"torch {torch.__version__} has no operator mkldnn::{lacks[0]}" if lacks else None


def _onednn_off() -> str | None:
    return _onednn_missing() or (None if torch._C._get_mkldnn_enabled() else "torch.backends.mkldnn is turned off")


@cache
def _mkl_missing() -> str | None:
    if not torch.backends.mkl.is_available():
        return "this build of torch has no MKL"
    lacks = [op for op in ("_mkl_linear", "_mkl_reorder_linear_weight") if not hasattr(torch.ops.mkl, op)]
    return f"torch {torch.__version__} has no operator mkl::{lacks[0]}" if lacks else None


@cache
def _gossamer_missing() -> str | None:
    try:
        from gossamer import _native  # noqa: F401
    except ImportError:
        return "gossamer._native is not built: reinstall gossamer with a C++ compiler at hand"
    return None


_EVERY = (
    Engine(TORCH, lambda: None, _of(F.linear), F.linear),
    Engine("onednn", _onednn_off, _of(_onednn), _onednn),
    Engine("onednn packed", _onednn_off, _onednn_prepared, _onednn_packed, packs=True),
    Engine("mkl packed", _mkl_missing, _mkl_prepared, None, packs=True),
    Engine("gossamer", _gossamer_missing, _of(_gossamer), _gossamer),
)
ENGINES = {engine.name: engine for engine in _EVERY}
_pinned: str | None = None


def engines() -> dict[str, str | None]:
    """Every engine, and why this machine does not have it; None if it does.

    >>> engines()["torch"] is None
    True
    """
    return {name: engine.missing() for name, engine in ENGINES.items()}


def pin(name: str | None) -> None:
    """Take this engine for every product that it can do, in the whole process; None lets the tuners choose again.

    What it cannot do (see above) stays torch's. "onednn packed" is for layers with `keep_packed`.

    Raises:
        ValueError: no engine of that name. RuntimeError: this machine does not have it.

    >>> pin("torch")
    >>> pin(None)
    """
    global _pinned
    if name is not None:
        usable = [each for each, engine in ENGINES.items() if engine.run is not None]
        if name not in usable:
            raise ValueError(f"name must be one of {usable} or None, got {name!r}")
        if (why := ENGINES[name].missing()) is not None:
            raise RuntimeError(f"{name!r} cannot be pinned: {why}")
    _pinned = name


def explain() -> str:
    """For a person: which engine each shape takes, and why."""
    if _pinned is not None:
        return f"pinned: {_pinned}"
    lines = [f"{site.text}\n{site.tuner.explain()}" for site in list(_sites.values())]
    return "\n\n".join(lines) or "no product was large enough to ask"


class _Site:
    """The call site of all products of one shape and layout, with one number of threads.

    Attributes:
        work: the multiplications that observed seconds are for, where shapes share the site; None where they are alike.
    """

    def __init__(self, text: str, keep_packed: bool, work: int | None) -> None:
        able = [
            name for name, engine in ENGINES.items()
            if name != TORCH and engine.run and (keep_packed or not engine.packs) and engine.missing() is None
        ]  # fmt: skip
        self.text, self.work = text, work
        self.candidates = (DENSE, *able)
        self.tuner = Tuner({_QUESTION: dict.fromkeys(able, "")}, name=text, call=_CALL)
        self.gradients: tuple[_Site, ...] = ()

    def multiply(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        tuner = self.tuner
        settled = tuner.bypassed(None)
        if settled is not None:
            return _run(settled)(x, weight, bias)
        choice = tuner.choose(_QUESTION, self.candidates, None)
        begin = clock.now()
        y = _run(choice)(x, weight, bias)
        seconds = clock.now() - begin
        if self.work is not None:
            seconds *= self.work / (x.numel() * weight.shape[0])
        tuner.observe(_QUESTION, choice, seconds)
        return y

    def settled_on_torch(self, gradients: bool) -> bool:
        """Whether torch's own operator is the fastest, and that of its gradients where they are wanted."""
        return (
            self.tuner.taken == DENSE
            and (not gradients or bool(self.gradients))
            and all(each.tuner.taken == DENSE for each in self.gradients)
        )


_sites: OrderedDict[tuple[Any, ...], _Site] = OrderedDict()


def _run(name: str) -> Run:
    run = ENGINES[TORCH if name == DENSE else name].run
    assert run is not None
    return run


def _site(x: Tensor, weight: Tensor, bias: Tensor | None, keep_packed: bool) -> _Site:
    key = (x.shape, x.stride(), weight.shape, weight.stride(), bias is None, keep_packed, torch.get_num_threads())
    return _sites.get(key) or _new_site(key, x, weight)


def _new_site(key: tuple[Any, ...], x: Tensor, weight: Tensor) -> _Site:
    (rows, inner), cols, (*_, keep_packed, threads) = x.shape, weight.shape[0], key
    layout = f"strides {tuple(x.stride())} and {tuple(weight.stride())}"
    work = None
    if len(_sites) >= _EXACT_SHAPES:
        rows, inner, cols = (1 << (size - 1).bit_length() for size in (rows, inner, cols))
        work = rows * inner * cols
        contiguous = x.is_contiguous(), weight.is_contiguous()
        layout = " and ".join("contiguous" if it else "strided" for it in contiguous)
        key = (rows, inner, cols, contiguous, *key[4:])
    found = _sites.get(key)
    if found is None:
        size = "sizes up to " if work else ""
        text = f"{size}[{rows}, {inner}] @ [{inner}, {cols}], {layout}, {threads} threads"
        found = _sites[key] = _Site(text, keep_packed, work)
        if len(_sites) > _MOST_SHAPES:
            _sites.popitem(last=False)
    return found


def forget() -> None:
    """Forget what the tuners learnt."""
    _sites.clear()


def _asks(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """May another engine than torch's do this product? Asked at every call, so in few steps."""
    return (
        _pinned != TORCH
        and _is_plain(x)
        and _is_plain(weight)
        and (bias is None or _is_plain(bias))
        and not torch._C._get_deterministic_algorithms()
        and not torch._C._len_torch_dispatch_stack()
        and not torch._C._is_torch_function_mode_enabled()
        and not torch._C._is_any_autocast_enabled()
        and not saving_is_watched()
        and torch._C._get_fp32_precision_getter("mkldnn", "matmul") in _EXACT
        and _functorch.peek_interpreter_stack() is None
        and forward_ad._current_level < 0
    )


def _is_plain(x: Tensor) -> bool:
    return (
        x.dtype is torch.float32
        and x.is_cpu
        and x.layout is torch.strided
        and type(x) in _PLAIN
        and not _functorch.is_legacy_batchedtensor(x)
    )


def _is_small(x: Tensor, weight: Tensor) -> bool:
    """Is this torch's own product before anything is asked? In a graph or a trace it always is."""
    if _is_recorded() or x.dim() < 2:
        return True
    if x.numel() * weight.shape[0] >= LEAST:
        return False
    return weight.numel() < LEAST_READ or not 0 < x.numel() <= FEW[torch.float32] * x.shape[-1]


def _is_recorded() -> bool:
    return torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None


def _fits(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Are the shapes right? Where they are not, torch's own operator says so."""
    return weight.dim() == 2 and x.shape[-1] == weight.shape[1] and (bias is None or bias.shape == weight.shape[:1])


def is_torchs(x: Tensor, weight: Tensor, bias: Tensor | None, keep_packed: bool) -> bool:
    """Whether `linear` would call torch's own operator now, by what its tuner has settled on if it asks one."""
    if _is_small(x, weight) or not _asks(x, weight, bias):
        return True
    site = _site(x if x.dim() == 2 else x.flatten(0, -2), weight, bias, keep_packed)
    return _pinned is None and site.settled_on_torch(wants_gradient(x, weight, bias))


class Product(Differentiable):
    """x[m, k] @ weight[n, k]^T + bias[n] by the engine that the site of this shape chooses."""

    name, operands = "linear", (0, 1, 2)

    @staticmethod
    def compute(x: Tensor, weight: Tensor, bias: Tensor | None, keep_packed: bool, site: _Site) -> Tensor:
        pinned = _pinned
        if pinned is not None:
            return _run(pinned if keep_packed or not ENGINES[pinned].packs else TORCH)(x, weight, bias)
        return site.multiply(x, weight, bias)

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, keep_packed: bool, site: _Site) -> Tensor:
        save(ctx, x, weight)
        ctx.site = site
        return Product.compute(x, weight, bias, keep_packed, site)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        need_x, need_weight, need_bias = ctx.needs_input_grad[:3]
        dx = linear(dy, weight.t()) if need_x else None
        dw = linear(dy.t(), x.t()) if need_weight else None
        if not ctx.site.gradients:
            ctx.site.gradients = tuple(
                _site(left, right, None, False)
                for left, right, wanted in ((dy, weight.t(), need_x), (dy.t(), x.t(), need_weight))
                if wanted and not _is_small(left, right) and _asks(left, right, None)
            )
        return dx, dw, dy.sum(0) if need_bias else None, None, None


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, keep_packed: bool = False) -> Tensor:
    """torch.nn.functional.linear by the fastest engine at this shape; differentiable to any order.

    Args:
        x: [..., k].
        weight: [n, k], in any strides.
        bias: [n].
        keep_packed: an engine may keep the weight in an order of its own between calls. It is packed anew when autograd
            counts another version of it; a write through `weight.data` or numpy is then not seen.

    >>> linear(torch.ones(1, 2), torch.ones(3, 2))
    tensor([[2., 2., 2.]])
    """
    if _is_small(x, weight) or not _asks(x, weight, bias) or not _fits(x, weight, bias):
        return F.linear(x, weight, bias)
    rows = x if x.dim() == 2 else x.flatten(0, -2)
    site = _site(rows, weight, bias, keep_packed)
    if _pinned is None and site.settled_on_torch(wants_gradient(x, weight, bias)) and site.tuner.bypassed(None):
        return F.linear(x, weight, bias)
    y: Tensor = Product.call(rows, weight, bias, keep_packed, site)
    return y if x.dim() == 2 else y.unflatten(0, x.shape[:-1])


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """torch.matmul; with one matrix b by the fastest engine at this shape."""
    if _is_recorded() or b.dim() != 2 or a.numel() * b.shape[1] < LEAST or not _asks(a, b, None):
        return torch.matmul(a, b)
    return linear(a, b.t())
