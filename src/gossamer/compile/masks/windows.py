"""skip_unseen: Longformer's windows and global tokens as attention over masks, of which only what is seen is computed.

    local query i      sees key j  where |i - j| <= window / 2 and j is local, and every global key      q, k, v
    global query i     sees every key that is no padding                       query_global, key_global, value_global

transformers writes this by hand in overlapping chunks, after padding texts to whole windows, and asks Python whether
there are global tokens, where graphs break. Here windows, global tokens and padding are two masks that all layers
share; nothing is padded, and a graph asks nothing.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from gossamer.compile.changed import Changed, Changes, changed_class
from gossamer.compile.finding import Finding
from gossamer.compile.masks.masked import EXPRESSION
from gossamer.ops import masked_attention


class _Seen(NamedTuple):
    """What queries see: bool[B, 1, S, S]; `by_global` is None where there are no global tokens."""

    by_local: Tensor
    by_global: Tensor | None


def _seen(kinds: Tensor, reach: int, any_global: bool) -> _Seen:
    """
    Args:
        kinds: [B, S]: 0 for local tokens, below for padding, above for global ones.
        reach: how far a local query sees to either side.
    """
    place = torch.arange(kinds.shape[1], device=kinds.device)
    near = (place[:, None] - place).abs() <= reach
    is_local, is_global = kinds == 0, kinds > 0
    by_local = (near & is_local[:, None] | is_global[:, None]) & is_local[:, :, None]
    by_global = is_global[:, :, None] & (kinds >= 0)[:, None]
    return _Seen(by_local.unsqueeze(1), by_global.unsqueeze(1) if any_global else None)


class _SelfAttention(Changed):
    def forward(
        self, hidden_states: Tensor, attention_mask: Any = None, is_index_masked: Any = None,
        is_index_global_attn: Any = None, is_global_attn: Any = None, output_attentions: bool = False,
    ) -> tuple[Tensor]:  # fmt: skip
        """hidden_states[B, S, dim] -> the same; `attention_mask` is the encoder's `_Seen`."""
        me: Any = self
        if not isinstance(attention_mask, _Seen):
            raise TypeError(
                "attention_mask must come from the encoder of a model that gossamer.compile.skip_unseen has changed, "
                f"got {type(attention_mask).__name__}"
            )
        if me.training and me.dropout > 0:
            raise ValueError(
                f"attention_probs_dropout_prob is {me.dropout}, and attention over masks drops no weights: train with "
                "from_pretrained(..., attention_probs_dropout_prob=0.0), or undo gossamer.compile.skip_unseen"
            )
        y = _attend(me, (me.query, me.key, me.value), hidden_states, attention_mask.by_local)
        if attention_mask.by_global is not None:  # rows of the other kind see nothing and are zero
            of_global = (me.query_global, me.key_global, me.value_global)
            y = y + _attend(me, of_global, hidden_states, attention_mask.by_global)
        return (y,)


def _attend(me: Any, projections: tuple[nn.Module, ...], x: Tensor, seen: Tensor) -> Tensor:
    q, k, v = (project(x).unflatten(2, (me.num_heads, me.head_dim)).transpose(1, 2) for project in projections)
    return masked_attention(q, k, v, seen).transpose(1, 2).flatten(2)


class _Encoder(Changed):
    def forward(
        self, hidden_states: Tensor, attention_mask: Tensor, padding_len: int = 0, output_attentions: bool = False,
        output_hidden_states: bool = False, return_dict: bool = True,
    ) -> Any:  # fmt: skip
        """`attention_mask`: [B, S] as the model makes it, 0 for local tokens."""
        from transformers.models.longformer.modeling_longformer import LongformerBaseModelOutput

        if output_attentions:
            raise ValueError(
                "output_attentions is True, and attention over masks keeps no weights: undo what "
                "gossamer.compile.skip_unseen changed"
            )
        any_global = torch.compiler.is_compiling() or bool((attention_mask > 0).any())
        masks: dict[int, _Seen] = {}
        states = [hidden_states]
        for layer in self.layer:  # type: ignore[attr-defined]
            reach = layer.attention.self.one_sided_attn_window_size
            if reach not in masks:
                masks[reach] = _seen(attention_mask, reach, any_global)
            states.append(layer(states[-1], attention_mask=masks[reach])[0])
        every = tuple(states) if output_hidden_states else None
        if not return_dict:
            return (states[-1],) if every is None else (states[-1], every)
        return LongformerBaseModelOutput(last_hidden_state=states[-1], hidden_states=every)


class _Model(Changed):
    def _pad_to_window_size(
        self, input_ids: Any, attention_mask: Any, token_type_ids: Any, position_ids: Any, inputs_embeds: Any,
        pad_token_id: int,
    ) -> tuple[Any, ...]:  # fmt: skip
        """Masks have any length."""
        return 0, input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds


def skip_unseen(model: nn.Module) -> Changes:
    """Have a Longformer of transformers compute of its attention only what some query sees.

    Args:
        model: changed in place, by its modules' classes, every `LongformerModel` in it: parameters, their names and
            what `save_pretrained` writes stay.

    Returns:
        The findings, one for each layer; `undo()` takes everything back.

    Outputs are those of transformers to rounding, with padding, global tokens and lengths that are no whole windows;
    so are gradients. Weights of attention are not returned (`output_attentions`) and not dropped: both are errors when
    the model is called. In a graph of `torch.compile` the global projections are computed whether or not a token is
    global, and torch's `fullgraph=True` holds.

    Raises:
        ValueError: a model without a Longformer in it.

    Source: Longformer (2020), section 3; sparsity that is known at run time only (PIT, SOSP 2023).

    >>> from transformers import LongformerConfig, LongformerModel
    >>> model = LongformerModel(LongformerConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
    ...                                          intermediate_size=64, attention_window=8)).eval()
    >>> ids = torch.arange(21).view(1, 21) + 3
    >>> expected = model(ids).last_hidden_state
    >>> report = skip_unseen(model)
    >>> torch.allclose(model(ids).last_hidden_state, expected, atol=1e-5)
    True
    """
    report = Changes(())
    found = []
    for name, module in model.named_modules():
        mixin = _mixin(module)
        if mixin is None:
            continue
        report.changed.append((module, type(module)))
        if mixin is _SelfAttention:
            found.append(
                Finding(name, "attention", EXPRESSION, "windows, global tokens, padding", ("j",),
                        "skip or dense, at run time", "a key that no query of a block sees is left out")
            )  # fmt: skip
    if not found:
        raise ValueError("model has no LongformerSelfAttention of transformers whose windows could be left out")
    for module, cls in report.changed:
        mixin = _mixin(module)
        assert mixin is not None
        module.__class__ = changed_class(mixin, cls)
    report.findings = tuple(found)
    return report


_MIXINS: dict[str, type[Changed]] = {
    "LongformerSelfAttention": _SelfAttention, "LongformerEncoder": _Encoder, "LongformerModel": _Model,
}  # fmt: skip


def _mixin(module: nn.Module) -> type[Changed] | None:
    """What changes a module as transformers wrote it; no module is of a class of a package that is not imported."""
    cls = type(module)
    theirs = cls.__module__ == "transformers.models.longformer.modeling_longformer" and Changed not in cls.__mro__
    return _MIXINS.get(cls.__name__) if theirs else None


def is_longformer(model: nn.Module) -> bool:
    """Whether it has a Longformer's attention as transformers wrote it."""
    return any(_mixin(module) is _SelfAttention for module in model.modules())
