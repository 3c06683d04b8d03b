"""Teaching a model which layers its tokens need.

    history = distill(radial, None, batches, budget=0.7, steps=500)     # the router alone; the model teaches itself
    history = train(model, batches, budget=0.5)                         # all of it, from the text

Routes are soft at first, with probabilities that grow sharp; in the last part they are decisions, as they will be. At
the end the policy is settled: moved a little, so that the last batches cost the budget.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from gossamer import files
from gossamer.routing.learning.batches import Batch, Batches
from gossamer.routing.learning.fit import Fit, History, Settings, Trained
from gossamer.routing.learning.layer_skip import LayerSkip, check_exits
from gossamer.routing.learning.objective import Objective
from gossamer.routing.learning.settling import settle
from gossamer.routing.radial import Radial


@torch.inference_mode(False)
def distill(
    radial: Radial, teacher: Any, data: Iterable[Batch], *, budget: float | None, steps: int | None = None,
    lr: float = 1e-3, model_lr: float = 1e-4, train: Trained = "router", objective: Objective | None = None,
    hard: float = 0.2, coldest: float = 0.1, seed: int = 0, optimizer: torch.optim.Optimizer | None = None,
    checkpoint: str | os.PathLike[str] | None = None, every: int = 100, source: str | None = None,
    progress: bool | None = None, on_step: Callable[[History], None] | None = None,
) -> History:  # fmt: skip
    """Train routes, so that the model says what a teacher says at a share of the cost.

    Args:
        radial: what is trained. Its parameters that are not, and all modes, are afterwards what they were.
        teacher: a decoder with the same vocabulary; None: the model inside `radial`, if that is not trained itself.
        data: batches int64[texts, tokens], or dicts with input_ids and perhaps attention_mask and labels: a sequence,
            which begins again at its end, or an iterator.
        budget: the share in (0, 1] of the whole stack's multiply-adds that a token spends in the mean; routers,
            adapters and keys count, embeddings and head do not. None: for policies that cannot learn to skip more.
        steps: how many; None: as many as there are batches.
        lr: of AdamW for the policy and adapters. model_lr: for the model itself. They rise over the first twentieth of
            the steps and fall to a tenth.
        train: "router": the policy and adapters; "all": every parameter that requires gradients.
        objective: weights of the parts of the loss.
        hard: the share of the steps at the end in which routes are decisions, and learning rates 0.3 of what they would
            be. coldest: the temperature before that; it begins at 1, and what is soft at the end is lost.
        seed: of what steps draw at random.
        optimizer: of some of the parameters that are trained; its learning rates are scaled. None: AdamW.
        checkpoint: a file that is written each `every` steps, at the end, and when Ctrl-C ends the run after a step. If
            it is there, the run goes on after it, bit by bit as if it had not stopped.
        source: what the data is, a digest of it for example: the checkpoint says so, and one that says something else
            is of another run. None: nothing is said of it.
        progress: whether to show a line on stderr; None: if that is a terminal.
        on_step: is told the history after each step. What it raises ends the run, with the checkpoint written.

    Returns:
        What was seen in each step.

    Raises:
        ValueError: naming the argument: a budget outside (0, 1], no data, a teacher of another vocabulary.
        gossamer.routing.StateError: the checkpoint is of another run.
        FloatingPointError: the loss is no number.

    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> config = LlamaConfig(vocab_size=50, hidden_size=32, intermediate_size=64, num_hidden_layers=3,
    ...                      num_attention_heads=2)
    >>> radial = Radial(LlamaForCausalLM(config).eval())
    >>> history = distill(radial, None, [torch.randint(50, (2, 16))], budget=0.7, steps=3)
    >>> history["step"]
    [1.0, 2.0, 3.0]
    """
    _check(radial)
    objective = Objective() if objective is None else objective
    teacher = _teacher(radial, teacher, train, objective.hidden)
    settings = {
        "train": train, "lr": lr, "model_lr": model_lr, "budget": budget, "hard": hard, "coldest": coldest,
        "seed": seed,
    }  # fmt: skip
    return _run(
        radial, teacher, data, steps, settings, objective, optimizer=optimizer,
        checkpoint=checkpoint, every=every, source=source, progress=progress, on_step=on_step,
    )  # fmt: skip


@torch.inference_mode(False)
def train(
    radial: Radial, data: Iterable[Batch], *, budget: float | None, steps: int | None = None, lr: float = 1e-3,
    model_lr: float = 1e-3, train: Trained = "all", objective: Objective | None = None, hard: float = 0.2,
    coldest: float = 0.1, layer_skip: LayerSkip | None = None, seed: int = 0,
    optimizer: torch.optim.Optimizer | None = None, checkpoint: str | os.PathLike[str] | None = None, every: int = 100,
    source: str | None = None, progress: bool | None = None, on_step: Callable[[History], None] | None = None,
) -> History:  # fmt: skip
    """Train routes and the model from text alone; arguments as of `distill`.

    Args:
        layer_skip: drop layers and weigh early exits as it says, so that a model with the policy `EarlyExit` foretells
            the text from early layers too, and guesses well for `speculate`; without a budget.

    >>> from gossamer.routing import RadialConfig, RadialLM
    >>> model = RadialLM(RadialConfig(vocabulary=50, width=32, layers=2, heads=2), mode="skip")
    >>> history = train(model, [torch.randint(50, (2, 16))] * 3, budget=0.5)
    >>> len(history), len(history["cost"])
    (3, 3)
    """
    _check(radial)
    if layer_skip is not None:
        check_exits(radial, budget)
    settings = {
        "train": train, "lr": lr, "model_lr": model_lr, "budget": budget, "hard": hard, "coldest": coldest,
        "seed": seed, "layer_skip": layer_skip,
    }  # fmt: skip
    return _run(
        radial, None, data, steps, settings, Objective() if objective is None else objective, optimizer=optimizer,
        checkpoint=checkpoint, every=every, source=source, progress=progress, on_step=on_step,
    )  # fmt: skip


def _check(radial: Any) -> None:
    if not isinstance(radial, Radial):
        raise ValueError(f"radial must be a gossamer.routing.Radial, got {type(radial).__name__}")


def _teacher(radial: Radial, teacher: Any, train: Trained, hidden: float) -> Any:
    """Who is followed; ValueError for one that cannot be."""
    given = radial.model if teacher is None else teacher
    if not isinstance(given, nn.Module) or not hasattr(given, "get_output_embeddings"):
        raise ValueError(f"teacher must be a decoder of transformers, got {type(given).__name__}")
    ours, theirs = len(_head(radial)), len(_head(given))
    if ours != theirs:
        raise ValueError(f"teacher has a vocabulary of {theirs} tokens, expected that of the model, {ours}")
    wide, width = _head(given).shape[1], _head(radial).shape[1]
    if hidden and wide != width:
        raise ValueError(
            f"objective.hidden is {hidden}, but the teacher's states are {wide} wide and not {width}; expected 0"
        )
    if train == "all" and {id(p) for p in given.parameters()} & {id(p) for p in radial.parameters() if p.requires_grad}:
        raise ValueError('teacher must be another model, or a copy, where train="all" changes the model itself')
    return given


def _head(model: Any) -> Tensor:
    """[vocabulary, width]"""
    weight: Tensor = model.get_output_embeddings().weight
    return weight


def _run(
    radial: Radial, teacher: Any, data: Iterable[Batch], steps: int | None, given: dict[str, Any], objective: Objective,
    *, optimizer: torch.optim.Optimizer | None, checkpoint: str | os.PathLike[str] | None, every: int,
    source: str | None, progress: bool | None, on_step: Callable[[History], None] | None,
) -> History:  # fmt: skip
    if isinstance(every, bool) or not isinstance(every, int) or every < 1:
        raise ValueError(f"every must be an integer of at least 1, got {every!r}")
    Settings(steps=1 if steps is None else steps, objective=objective, **given)  # before data is read
    batches = Batches(data, steps, vocabulary=len(_head(radial)))
    settings = Settings(steps=batches.steps, objective=objective, **given)
    length = batches.take(0)["input_ids"].shape[1]
    fit = Fit(radial, teacher, settings, context=(length + 1) / 2, optimizer=optimizer, source=source)
    if checkpoint is not None:
        files.check_target(checkpoint)
        if Path(checkpoint).exists():
            fit.load(checkpoint)
    shown = sys.stderr.isatty() if progress is None else progress
    with _prepared(fit), _whole_steps() as check:
        while fit.step < settings.steps:
            record = fit.learn(batches.take(fit.step))
            if shown:
                _show(record, settings.steps)
            due = fit.step % every == 0 or fit.step == settings.steps
            try:
                if on_step is not None:
                    on_step(fit.history)
                check()
            except BaseException:
                due = True
                raise
            finally:
                if due and checkpoint is not None:
                    fit.save(checkpoint)
        if settings.budget is not None and fit.history.settled is None:
            fit.history.settled = settle(radial, batches.recent(), settings.budget)
            if checkpoint is not None:
                fit.save(checkpoint)
    return fit.history


@contextmanager
def _whole_steps() -> Iterator[Callable[[], None]]:
    """Inside, the first Ctrl-C waits for the call of what is given here; a second one does not.

    Where somebody else takes care of the signal, or in another thread, nothing is changed.
    """
    asked = False

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True

    def check() -> None:
        if asked:
            raise KeyboardInterrupt

    mine = threading.current_thread() is threading.main_thread()
    if not mine or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield check
        return
    signal.signal(signal.SIGINT, handle)
    try:
        yield check
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _show(record: dict[str, float], steps: int) -> None:
    parts = [f"step {record['step']:.0f}/{steps}", f"loss {record['loss']:.3f}"]
    parts += [f"cost {record['cost']:.3f}"] if "cost" in record else []
    end = "\n" if record["step"] == steps else ""
    print("\r" + "  ".join(parts) + " " * 8, end=end, file=sys.stderr, flush=True)


@contextmanager
def _prepared(fit: Fit) -> Iterator[None]:
    """Modes, gradients and torch's random numbers as training needs them, and afterwards as they were."""
    radial, teacher = fit.radial, fit.teacher
    modules = [*radial.modules(), *([] if teacher is None else teacher.modules())]
    modes = [(module, module.training) for module in modules]
    wanted = [(parameter, parameter.requires_grad) for parameter in radial.parameters()]
    mine = {id(parameter) for parameter in fit.trained.values()}
    devices = sorted({p.device.index or 0 for p in radial.parameters() if p.device.type == "cuda"})
    try:
        if teacher is not None:
            teacher.eval()
        radial.train(fit.settings.train == "all")
        radial.policy.train()
        if radial.adapters is not None:
            radial.adapters.train()
        for parameter, _ in wanted:
            parameter.requires_grad_(id(parameter) in mine)
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        radial.policy.phase = "hard"
        fit.optimizer.zero_grad()
        for module, mode in modes:
            module.training = mode
        for parameter, required in wanted:
            parameter.requires_grad_(required)
