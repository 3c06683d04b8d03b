"""Encoder-decoders: padding is left out of both, whose texts have other lengths, with eager's answers and gradients."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.backends.debugging import aot_eager

from gossamer.compile.backend import compiled
from gossamer.compile.explanation import Explanation
from gossamer.compile.options import options_of
from gossamer.compile.record import Record, observers

transformers = pytest.importorskip("transformers")
EPS = torch.finfo(torch.float32).eps


def bart() -> Any:
    config = transformers.BartConfig(
        vocab_size=99, d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=64, decoder_ffn_dim=64, max_position_embeddings=64, dropout=0.0,
    )  # fmt: skip
    return transformers.BartModel(config)


def t5(layers: int = 2) -> Any:
    """By itself of two layers, as the second one takes the first one's bias of places."""
    config = transformers.T5Config(
        vocab_size=99, d_model=32, d_kv=16, d_ff=64, num_layers=layers, num_heads=2, dropout_rate=0.0
    )
    return transformers.T5Model(config)


def whisper() -> Any:
    config = transformers.WhisperConfig(
        vocab_size=99, d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, pad_token_id=1,
        decoder_attention_heads=2, encoder_ffn_dim=64, decoder_ffn_dim=64, dropout=0.0, num_mel_bins=8,
        max_source_positions=10, max_target_positions=64, bos_token_id=2, eos_token_id=3, decoder_start_token_id=2,
    )  # fmt: skip
    return transformers.WhisperModel(config)


def kept(lengths: list[int]) -> Tensor:
    return (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()


def inputs(read: list[int], written: list[int], heard: bool = False) -> dict[str, Tensor]:
    mask, decoder_mask = kept(read), kept(written)
    found = {"decoder_input_ids": torch.randint(4, 99, decoder_mask.shape), "decoder_attention_mask": decoder_mask}
    if heard:
        return {"input_features": torch.randn(len(read), 8, 20), **found}
    return {"input_ids": torch.randint(4, 99, mask.shape), "attention_mask": mask, **found}


def as_it_is(piece: Any, given: list[Any]) -> Any:
    return piece


class Both:
    """A model by eager and by the backend, whose pieces stay as they are, and the records of its graphs."""

    def __init__(self, model: Any, *, compiler: Any = as_it_is, dynamic: bool | None = None, **options: Any) -> None:
        torch._dynamo.reset()
        self.records: list[Record] = []
        self.model = model.eval()
        backend = functools.partial(compiled, options=options_of({"min_padding": 0.05, **options}), compiler=compiler)

        def watched(gm: Any, given: list[Any]) -> Any:
            observers.append(self.records.append)
            try:
                return backend(gm, given)
            finally:
                observers.remove(self.records.append)

        self.fast = torch.compile(model, backend=watched, fullgraph=True, dynamic=dynamic)

    def agrees(self, given: dict[str, Tensor]) -> None:
        keep = given["decoder_attention_mask"][..., None]
        expected, found = (run(**given, use_cache=False)[0] for run in (self.model, self.fast))
        bound = 256 * EPS * float(expected.detach().abs().max())
        assert float(((found - expected) * keep).detach().abs().max()) <= bound

    def learns_alike(self, given: dict[str, Tensor]) -> None:
        keep, gradients = given["decoder_attention_mask"][..., None], []
        for run in (self.model, self.fast):
            self.model.zero_grad()
            (run(**given, use_cache=False)[0] * keep).square().sum().backward()
            gradients.append({name: p.grad.clone() for name, p in self.model.named_parameters() if p.grad is not None})
        expected, found = gradients
        assert expected.keys() == found.keys()
        most = max(float(grad.abs().max()) for grad in expected.values())
        for name, grad in expected.items():
            assert float((found[name] - grad).abs().max()) <= 256 * EPS * most, name


@pytest.mark.parametrize("make", [bart, t5, whisper])
def test_both_are_packed_and_answer_and_learn_as_eager(make: Any) -> None:
    torch.manual_seed(0)
    # One of them through autograd's own tracing too, which sees to it that each piece can be compiled.
    both, heard = Both(make(), compiler=aot_eager if make is bart else as_it_is), make is whisper
    given = inputs([13, 4, 9, 2], [11, 3, 2, 7], heard)
    both.agrees(given)
    both.agrees({name: x.flip(0) for name, x in given.items()})
    (record,) = both.records
    tallies = [record.tally] if heard else [record.tally, record.tally.later]
    assert all(tally is not None and tally.packed_calls == tally.calls == 2 for tally in tallies)
    packed = [found.operator for found in record.findings if found.choice == "packed"]
    assert packed.count("attention") == {bart: 2, t5: 4, whisper: 1}[make]  # of each to itself
    assert packed.count("linear") == (len(packed) - packed.count("attention"))
    both.learns_alike(given)
    assert len(both.records) == 1


def test_either_runs_dense_where_it_has_no_padding_and_lengths_are_data_in_graphs_of_any_size() -> None:
    torch.manual_seed(0)
    both = Both(bart(), min_padding=0.1)
    with torch.no_grad():
        both.agrees(inputs([13, 4, 9, 2], [11, 3, 2, 7]))
        both.agrees(inputs([13, 4, 9, 2], [11, 11, 11, 11]))
        both.agrees(inputs([13, 13, 13, 13], [11, 3, 2, 7]))
    (record,) = both.records
    later = record.tally.later
    assert later is not None and (later.packed_calls, later.calls) == (3, 3)  # dense was never compiled
    assert (record.tally.packed_calls, record.tally.calls) == (3, 3)
    with torch.no_grad():
        for read, written in (([8, 3, 2, 5], [14, 2, 9, 9]), ([9, 9, 1, 2], [9, 2, 3, 4])):
            both.agrees(inputs(read, written))
    _, of_any_size = both.records
    later = of_any_size.tally.later
    assert later is not None and of_any_size.tally.packed_calls == later.packed_calls == 2


def test_a_loss_over_labels_that_end_with_the_text() -> None:
    torch.manual_seed(0)
    model = transformers.T5ForConditionalGeneration(t5(layers=1).config).eval()
    given = inputs([13, 4, 9, 2], [11, 3, 2, 7])
    labels = torch.where(given["decoder_attention_mask"] == 1, given["decoder_input_ids"], -100)
    both = Both(model)
    with torch.no_grad():
        expected, found = (run(**given, labels=labels, use_cache=False).loss for run in (both.model, both.fast))
    torch.testing.assert_close(found, expected)
    assert "then, behind it, 1 calls, 48% padding" in str(Explanation(tuple(both.records), ()))


def test_graphs_of_dynamic_numbers_stay_dense_and_say_so(caplog: pytest.LogCaptureFixture) -> None:
    """dynamic=True makes a variable of the scale of attention, which was once taken for a node of another graph."""
    torch.manual_seed(0)
    both = Both(bart(), dynamic=True)
    with torch.no_grad():
        both.agrees(inputs([13, 4, 9, 2], [11, 3, 2, 7]))
    assert "attention whose scale is no constant" in str(Explanation(tuple(both.records), ()))
    assert "a fault in gossamer" not in caplog.text
