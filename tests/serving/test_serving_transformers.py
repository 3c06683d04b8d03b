"""attn_implementation="gossamer" is attention: the same tokens and numbers as transformers' own, or an error."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from serving_decoders import FAMILIES, decoder, transformers

import gossamer as gs
from gossamer.serving import SparseCache, hooks
from gossamer.serving.paging.pages import OutOfPages

pytestmark = pytest.mark.filterwarnings("ignore")


def padded(side: str, tokens: int = 100):
    ids, mask = torch.randint(2, 200, (2, tokens)), torch.ones(2, tokens, dtype=torch.long)
    mask[1, :37] = 0
    return ids, mask if side == "left" else mask.flip(1)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_tokens_of_transformers(family):
    model, (ids, mask) = decoder(family), padded("left", 120)  # the third page begins while it decodes
    more = {"max_new_tokens": 12, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    model.set_attn_implementation("eager")
    expected = model.generate(ids, attention_mask=mask, **more)
    model.set_attn_implementation("gossamer")
    for cache in (None, SparseCache(model.config)):
        found = model.generate(ids, attention_mask=mask, past_key_values=cache, **more)
        assert torch.equal(found.sequences, expected.sequences)
        torch.testing.assert_close(torch.stack(found.logits), torch.stack(expected.logits), atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_padding_on_the_right(family, cached):
    model, (ids, mask) = decoder(family), padded("right")
    model.set_attn_implementation("eager")
    expected = model(ids, attention_mask=mask).logits
    model.set_attn_implementation("gossamer")
    cache = SparseCache(model.config) if cached else None
    found = model(ids, attention_mask=mask, past_key_values=cache).logits
    torch.testing.assert_close(found[mask.bool()], expected[mask.bool()], atol=2e-4, rtol=2e-4)


def test_a_cache_of_any_kind_of_page_is_near():
    model, (ids, mask) = decoder("qwen3"), padded("left")
    model.set_attn_implementation("eager")
    expected = model(ids, attention_mask=mask).logits[:, -1]
    model.set_attn_implementation("gossamer")
    sizes = []
    for stored, error in (("float32", 1e-5), ("bfloat16", 0.03), ("float16", 0.005), ("int8", 0.03), ("int4", 1.0)):
        cache = SparseCache(model.config, stored=stored, capacity=128)
        found = model(ids, attention_mask=mask, past_key_values=cache).logits[:, -1]
        assert (found - expected).norm() <= error * expected.norm(), stored
        sizes.append(cache.nbytes)
    assert sizes == sorted(sizes, reverse=True) and len(set(sizes)) == 4  # bfloat16 is as large as float16


def test_beams_follow_their_pages():
    model, (ids, mask) = decoder("llama"), padded("left", 120)
    more = {"max_new_tokens": 12, "do_sample": False, "num_beams": 3}
    model.set_attn_implementation("eager")
    expected = model.generate(ids, attention_mask=mask, **more)
    model.set_attn_implementation("gossamer")
    cache = SparseCache(model.config)
    assert torch.equal(model.generate(ids, attention_mask=mask, past_key_values=cache, **more), expected)


def test_a_conversation_goes_on_and_is_taken_back():
    """A second turn uses the cache of the first; tokens that are taken away leave no trace."""
    model = decoder("llama")
    model.set_attn_implementation("gossamer")
    ids, cache = torch.randint(2, 200, (1, 150)), SparseCache(model.config)
    model(ids[:, :100], past_key_values=cache)
    model(torch.randint(2, 200, (1, 7)), past_key_values=cache)
    cache.crop(-7)
    second = model(ids[:, 100:], past_key_values=cache).logits
    torch.testing.assert_close(second, model(ids).logits[:, 100:], atol=2e-5, rtol=2e-5)
    assert cache.get_seq_length() == 150
    cache.reset()
    assert cache.get_seq_length() == 0
    torch.testing.assert_close(model(ids, past_key_values=cache).logits, model(ids).logits, atol=2e-5, rtol=2e-5)


def test_a_window_that_has_moved_on_cannot_move_back():
    model = decoder("mistral, a window")
    model.set_attn_implementation("gossamer")
    cache = SparseCache(model.config)
    for part in torch.randint(2, 200, (1, 300)).split(50, dim=1):
        model(part, past_key_values=cache)
    assert not cache.is_croppable
    with pytest.raises(ValueError, match="250 tokens cannot be taken away"):
        cache.crop(-250)
    cache.crop(-2)
    assert cache.get_seq_length() == 298


def test_gradients_dropout_weights_and_foreign_masks_are_refused():
    model = decoder("llama")
    model.set_attn_implementation("gossamer")
    ids = torch.randint(2, 200, (1, 8))
    with pytest.raises(ValueError, match="no attention weights: use 'eager'"):
        model(ids, output_attentions=True)
    with pytest.raises(ValueError, match=r"mask \[batch, keys\] of padding, got \[1, 1, 8, 8\]"):
        model(ids, attention_mask=torch.zeros(1, 1, 8, 8))
    packed = torch.tensor([[0, 1, 2, 0, 1, 2, 3, 4]])
    with pytest.raises(ValueError, match="causal masks alone"):  # two texts in one row, told by their positions
        model(ids, position_ids=packed, use_cache=False)
    attention = model.model.layers[0].self_attn
    state = torch.zeros(1, 4, 8, 16, requires_grad=True)
    with pytest.raises(RuntimeError, match="no gradient"):
        hooks.attention(attention, state, state, state, None)
    with pytest.raises(ValueError, match=r"no dropout, got 0\.5"):
        hooks.attention(attention, state.detach(), state, state, None, dropout=0.5)
    with pytest.raises(TypeError, match="key and value must both come from one cache"):
        hooks.attention(attention, state.detach(), state, None, None)
    with pytest.raises(ValueError, match=r"learned \(s_aux\)"):
        hooks.attention(attention, state.detach(), state, state, None, s_aux=state)


def test_an_encoder_is_refused():
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    config._attn_implementation = "gossamer"
    model = transformers.BertModel(config).eval()
    with torch.no_grad(), pytest.raises(ValueError, match="causal"):
        model(torch.tensor([[1, 2, 3]]))


def test_another_attention_cannot_read_a_ticket():
    model = decoder("llama")
    for name in ("eager", "sdpa"):
        model.set_attn_implementation(name)
        with pytest.raises(RuntimeError, match='load the model with attn_implementation="gossamer"'):
            model(torch.tensor([[5, 6]]), past_key_values=SparseCache(model.config))
    model.set_attn_implementation("eager")


def test_a_cache_of_a_fixed_size_is_refused():
    model = decoder("llama")
    model.set_attn_implementation("gossamer")
    with pytest.raises(ValueError, match="not ones of a fixed size"):
        model(torch.tensor([[5, 6]]), past_key_values=transformers.StaticCache(model.config, max_cache_len=16))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"kv_lora_rank": 16}, "compressed keys"),
        ({"layer_types": ["full_attention", "linear_attention", "full_attention"]}, "layer 1 of llama is linear"),
        ({"head_dim": 20}, "heads of width 20"),
        ({"head_dim": 272}, "heads of width 272"),
        ({"num_kv_shared_layers": 1}, "another layer's keys"),
        ({"is_encoder_decoder": True}, "an encoder with a decoder"),
    ],
)
def test_what_pages_cannot_hold_is_refused_at_once(change, said):
    config = transformers.LlamaConfig(num_hidden_layers=3, hidden_size=64, num_attention_heads=4)
    for name, value in change.items():
        setattr(config, name, value)
    with pytest.raises(ValueError, match=said):
        SparseCache(config)


def test_a_full_cache_says_so():
    model = decoder("llama")
    model.set_attn_implementation("gossamer")
    cache = SparseCache(model.config, capacity=64)
    model(torch.randint(2, 200, (1, 60)), past_key_values=cache)
    with pytest.raises(OutOfPages, match="capacity of 64 tokens is full"):
        model(torch.randint(2, 200, (1, 60)), past_key_values=cache)


def test_copies_go_on_as_the_cache_itself():
    """A prefix that is read once and continued several times; a cache that is sent to another process."""
    model = decoder("llama")
    model.set_attn_implementation("gossamer")
    ids, cache = torch.randint(2, 200, (2, 300)), SparseCache(model.config, token_budget=192)
    for part in (ids, ids[:, :1], ids[:, :1]):
        model(part, past_key_values=cache)
    for other in (copy.deepcopy(cache), pickle.loads(pickle.dumps(cache))):
        whole = copy.deepcopy(cache)
        for _ in range(3):
            expected = model(ids[:, :1], past_key_values=whole).logits
            assert torch.equal(model(ids[:, :1], past_key_values=other).logits, expected)
    assert cache.get_seq_length() == 302


def test_around_the_cache():
    """Inference mode and then none, autocast, weights of another dtype, embeddings, chunks, drafts, compiled models."""
    model = decoder("llama")
    model.set_attn_implementation("gossamer")
    ids = torch.randint(2, 200, (1, 100))
    expected = model(ids).logits
    with torch.inference_mode():
        cache = SparseCache(model.config)
        model(ids[:, :60], past_key_values=cache)
    torch.testing.assert_close(model(ids[:, 60:], past_key_values=cache).logits, expected[:, 60:], atol=2e-5, rtol=2e-5)
    embedded = model(inputs_embeds=model.get_input_embeddings()(ids), past_key_values=SparseCache(model.config)).logits
    torch.testing.assert_close(embedded, expected, atol=2e-5, rtol=2e-5)
    with torch.autocast("cpu", torch.bfloat16):
        assert model(ids, past_key_values=SparseCache(model.config)).logits.dtype == torch.bfloat16
    half, cache = copy.deepcopy(model).bfloat16(), SparseCache(model.config)
    half(ids, past_key_values=cache)
    assert cache.pages.stored == "bfloat16"
    tokens = model.generate(ids, max_new_tokens=6, do_sample=False)
    for more in ({"prefill_chunk_size": 33}, {"prompt_lookup_num_tokens": 3}):
        cache = SparseCache(model.config)
        assert torch.equal(
            model.generate(ids, past_key_values=cache, max_new_tokens=6, do_sample=False, **more), tokens
        )
    one = copy.deepcopy(model)
    del one.model.layers[1:]
    one.config.num_hidden_layers = 1
    compiled, cache = torch.compile(one, backend="eager"), SparseCache(one.config)
    compiled(ids[:, :50], past_key_values=cache)
    found = compiled(ids[:, 50:], past_key_values=cache).logits
    torch.testing.assert_close(found, one(ids).logits[:, 50:], atol=2e-5, rtol=2e-5)


def test_a_cache_refuses_what_does_not_fit_it():
    model = decoder("llama")
    model.set_attn_implementation("gossamer")
    ids, cache = torch.randint(2, 200, (2, 20)), SparseCache(model.config)
    model(ids, past_key_values=cache)
    with pytest.raises(ValueError, match="keys have 1 rows and the cache 2"):
        model(ids[:1], past_key_values=cache)
    mask = torch.ones(2, 40)
    mask[0, :5] = 0
    with pytest.raises(ValueError, match="attention_mask has changed for tokens"):
        model(ids, attention_mask=mask, past_key_values=cache)
    with pytest.raises(ValueError, match=r"must be \[batch, 2, tokens, 32\]"):
        model(ids, past_key_values=SparseCache(decoder("qwen3").config))
    with pytest.raises(ValueError, match="both given"):
        SparseCache(model.config, gs.serving.Sparsity(), token_budget=192)
    with pytest.raises(ValueError, match="capacity must be a number"):
        SparseCache(model.config, capacity=0)


def test_an_engine_leaves_the_model_as_it_was():
    model = decoder("llama")
    model.set_attn_implementation("sdpa")
    engine = gs.serving.Engine(model, end=[])
    engine.add([5, 6], gs.serving.Sampling(max_tokens=2))
    engine.step()
    assert model.config._attn_implementation == "sdpa"
    model(torch.tensor([[5, 6]]), output_attentions=False)
