"""Which heads may stream, measured: gates of key heads are trained while the model stays as it is.

pattern = calibrate(model, passkeys(tokenizer), sink=128, local=256, steps=200, length=2048)
pattern.save("full_attention_heads.tsv")
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from gossamer.serving.calibrating.gates import gated
from gossamer.serving.calibrating.passkeys import Passkeys
from gossamer.serving.geometry import Geometry
from gossamer.serving.heads import HeadPattern
from gossamer.wrappers import unwrap

Labelled = tuple[Tensor, Tensor]
Progress = Callable[[int, int, float, float], None]
_SETTLING = 0.2  # share of the steps over which the learning rate falls


def calibrate(
    model: Any, samples: Passkeys | Sequence[Labelled], *, sink: int = 128, local: int = 256, steps: int = 200,
    length: int = 2048, keys: int = 10, learning_rate: float = 0.02, regularization: float = 0.05, seed: int = 0,
    recompute: bool = False, progress: Progress | None = None,
) -> HeadPattern:  # fmt: skip
    """Train a gate for each key head: 1 where all tokens are needed, 0 where the first and the last are enough.

    A head gives gate * full + (1 - gate) * streaming attention. The loss is how far that moves the last hidden states
    which predict the labels, from those of full attention (mean of squares), and regularization * mean gate. Gates
    begin at 1 and are kept in [0, 1].

    Args:
        model: a causal decoder of transformers. Its weights are not trained; its gradients, modes and attention are
            afterwards what they were, also if this ends early.
        samples: what to read: pass keys in text, or int64[tokens] with bool[tokens], True for labels, in turn.
        sink, local: what a head that streams sees: the first and the last tokens; local counts the token itself.
        length: tokens of a prompt of pass keys. keys: how many it hides. seed: of the first of them.
        learning_rate: of AdamW, without decay of weights; it falls over the last fifth of the steps.
        recompute: less memory and a third more time: layers are computed again in the backward pass.
        progress: is told after each step (steps done, steps, distance of the hidden states, mean gate).

    Returns:
        Gates; layers with a window of their own have 1 and take no part.

    Raises:
        ValueError: naming the argument; a model that is not supported; a loss that is no number.

    Source: DuoAttention (arXiv 2410.10819), section 2.2: gates and objective.

    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> config = LlamaConfig(vocab_size=100, hidden_size=32, intermediate_size=32, num_hidden_layers=1,
    ...                      num_attention_heads=2, num_key_value_heads=2)
    >>> samples = [(torch.arange(60), torch.arange(60) > 50)]
    >>> calibrate(LlamaForCausalLM(config), samples, sink=4, local=8, steps=2).gates.shape
    torch.Size([1, 2])
    """
    _check_numbers(sink, local, steps, learning_rate, regularization)
    model = unwrap(model)
    geometry = Geometry.of(model.config)
    streams = [layer.window is None for layer in geometry.layers]
    if len(set(geometry.key_heads)) != 1 or not any(streams):
        raise ValueError(
            f"{type(model).__name__} must have layers with full attention, and the same number of key heads in all; "
            f"got {sum(streams)} of {len(streams)} layers, and {sorted(set(geometry.key_heads))} key heads"
        )
    embedding = model.get_input_embeddings().weight
    device = embedding.device

    def sample(step: int) -> Labelled:
        if isinstance(samples, Passkeys):
            tokens, labels = samples.sample(length, keys, seed + step).labelled()
        else:
            tokens, labels = samples[step % len(samples)]
        _check_sample(tokens, labels, sink + local, geometry.longest, embedding.shape[0])
        return tokens.to(device), labels.to(device)

    if not isinstance(samples, Passkeys) and not samples:
        raise ValueError("samples must have at least one, got none")
    for step in range(1 if isinstance(samples, Passkeys) else len(samples)):
        sample(step)  # what is wrong with texts and lengths is said before anything runs
    gates = torch.ones(len(streams), geometry.key_heads[0], dtype=torch.float32, device=device, requires_grad=True)
    trained = torch.tensor(streams, device=device)
    optimizer = torch.optim.AdamW([gates], lr=learning_rate, weight_decay=0.0)
    with gated(model, sink=sink, local=local, recompute=recompute) as run, torch.inference_mode(False):
        for step in range(steps):
            tokens, labels = sample(step)
            run.gates = None
            with torch.no_grad():
                target = _predicting(model, tokens, labels)
            run.gates = gates
            with torch.enable_grad():
                distance = (_predicting(model, tokens, labels) - target).square().mean()
                loss = distance + regularization * gates[trained].mean()
                (gates.grad,) = torch.autograd.grad(loss, gates)
            if not bool(gates.grad.isfinite().all()):
                raise ValueError(f"the loss of step {step} is {float(loss.detach())} and its gradient no number")
            optimizer.param_groups[0]["lr"] = learning_rate * min(1.0, (steps - step) / (_SETTLING * steps))
            optimizer.step()
            with torch.no_grad():
                gates.clamp_(0, 1)
            if progress is not None:
                progress(step + 1, steps, float(distance.detach()), float(gates.detach()[trained].mean()))
    return HeadPattern(gates.detach().double().cpu())


def _predicting(model: Any, tokens: Tensor, labels: Tensor) -> Tensor:
    """float32[labels, width]: the last hidden states of the tokens before labels."""
    hidden = model.base_model(input_ids=tokens[None], use_cache=False, return_dict=True).last_hidden_state[0]
    return hidden[labels.nonzero()[:, 0] - 1].float()


def _check_numbers(sink: int, local: int, steps: int, learning_rate: float, regularization: float) -> None:
    for name, value, least in (("sink", sink, 0), ("local", local, 1), ("steps", steps, 1)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}")
    if not (math.isfinite(learning_rate) and learning_rate > 0):
        raise ValueError(f"learning_rate must be a number above 0, got {learning_rate!r}")
    if not (math.isfinite(regularization) and regularization >= 0):
        raise ValueError(f"regularization must be a number of at least 0, got {regularization!r}")


def _check_sample(tokens: Tensor, labels: Tensor, seen: int, longest: int | None, vocabulary: int) -> None:
    """Refuse tokens that the model does not know, and lengths for which nothing is trained or that it cannot read."""
    if tokens.dim() != 1 or tokens.dtype != torch.int64 or labels.dtype != torch.bool:
        raise ValueError(
            f"samples must be int64[tokens] with bool[tokens], got {tokens.dtype}{list(tokens.shape)} with "
            f"{labels.dtype}{list(labels.shape)}"
        )
    count = tokens.numel()
    if labels.shape != tokens.shape or not bool(labels.any()) or bool(labels[0]):
        raise ValueError(
            f"samples must have a label for each of {count} tokens, some True but not the first, got "
            f"{list(labels.shape)}, {int(labels.sum())} of them True"
        )
    if count <= seen:
        raise ValueError(f"samples must be longer than sink and local, {seen} tokens, got {count}")
    if longest is not None and count > longest:
        raise ValueError(f"samples must have at most the model's {longest} tokens, got {count} with the answer")
    if int(tokens.min()) < 0 or int(tokens.max()) >= vocabulary:
        raise ValueError(
            f"samples must have tokens from 0 to {vocabulary - 1}, got {int(tokens.min())} to {int(tokens.max())}"
        )
