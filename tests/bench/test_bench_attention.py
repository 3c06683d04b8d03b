"""The suite of attention runs, and the rivals that it times compute the same."""

import pytest
import torch

from gossamer import bench
from gossamer.bench.attention import batch, whole
from gossamer.bench.attention.decode import rivals
from gossamer.bench.attention.decoders import TOY, Decoder, llama
from gossamer.bench.attention.forced import Scores, Text, Texts, coarser
from gossamer.bench.attention.layer import GROUP, Layer, newest, queries, torch_attention
from gossamer.bench.attention.quality import Hidden, perplexity
from gossamer.bench.attention.steps import STEPS, Steps, engine, filled
from gossamer.ops import PagePool, page_append, page_attention
from gossamer.serving.sparsity import Sparsity


def test_every_section_runs_and_makes_its_tables():
    result = bench.run("attention", bench.Settings(quick=True, reps=1))
    for name, section in bench.sections("attention").items():
        rows = result["sections"][name]["rows"]
        assert rows and section.table.text(rows).count("\n") == len(rows) + 2
        for table in section.further.values():  # a line for several rows, where those are ways of one model
            assert 3 <= table.text(rows).count("\n") <= len(rows) + 2


def test_the_rivals_attend_to_the_same_keys():
    layer = Layer.drawn(200)
    pool, batch = layer.pool("float32")
    q = queries(1)
    ours = page_attention(q, pool, newest(batch), group=GROUP)
    for name, call in rivals(layer, q).items():  # bfloat16 ones round scores, weights and sums to 8 bits
        torch.testing.assert_close(call().float().view(ours.shape), ours, rtol=1e-2, atol=2e-2, msg=name)
    prompt = queries(200)
    ours = page_attention(prompt, pool, batch, group=GROUP)
    found = torch_attention(prompt, layer.keys, layer.values)[0].transpose(0, 1)
    torch.testing.assert_close(found, ours, rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def toy():
    model = llama(TOY, torch.float32)
    for parameter in model.parameters():
        parameter.mul_(3)  # attention is to matter
    return model


@torch.inference_mode()
def test_ways_to_decode_go_on_from_the_same_context_and_leave_it_as_it_was(toy):
    context = 256
    ways = whole.ways(toy, context, {"dense": Sparsity(), "half": whole.half(toy, sink=64, local=64)})
    first = {name: way() for name, way in ways.items()}
    assert first["dense"] == first["transformers"] != first["half"] and len(first["dense"][0]) == STEPS
    assert {name: way() for name, way in ways.items()} == first
    a_token = 2 * 2 * 2 * 16 * 4  # of two layers, two key heads, keys and values of 16 float32
    assert ways["transformers"].held() == ways["dense"].held() == context * a_token
    assert ways["dense"].read() * STEPS == sum(range(context + 1, context + 1 + STEPS)) * a_token
    assert ways["half"].read() * STEPS == (ways["dense"].read() + 128 * a_token) * STEPS // 2


@torch.inference_mode()
def test_chosen_pages_and_their_summaries_are_what_is_read(toy):
    mine = engine(toy, Sparsity(token_budget=192, stored="int8"), 640)
    steps, heads = Steps(mine, [filled(mine, 640)]), 2 * 2
    a_key, sketches = 2 * 16 + 2 * 2 * 2, 64 * (16 // 2 + 2 * 2)  # codes, scales and zeros; of a page in four bits
    keys = heads * sum(2 * 64 + at for at in range(1, STEPS + 1))  # the newest page has 1 to 4 tokens
    assert steps.read() == (keys * a_key + STEPS * heads * 11 * sketches) // STEPS


@torch.inference_mode()
def test_requests_together_make_the_tokens_that_they_make_alone(toy):
    calls = batch.decoding(toy, batch.drawn(TOY["vocab_size"], quick=True))
    made = calls[batch.ALONE]()
    assert made == calls[batch.TOGETHER]() == calls[batch.ALONE]() and len(set(map(tuple, made))) > 1


@torch.inference_mode()
def test_given_texts_are_judged_as_transformers_judges_them(toy):
    texts = [Text(torch.randint(256, (length,)).tolist(), context) for length, context in ((270, 256), (133, 128))]
    expected = [toy(torch.tensor([text.tokens])).logits[0].log_softmax(1) for text in texts]
    judged = Texts(toy, texts, Sparsity())
    dense, tally = judged.decode(Sparsity(token_budget=320))
    for text, found, said in zip(texts, dense, expected, strict=True):
        follows = torch.tensor(text.tokens[text.context + 1 :])
        said = said[text.context : -1]
        torch.testing.assert_close(found.logprobs, said.gather(1, follows[:, None])[:, 0], rtol=1e-4, atol=1e-4)
        assert torch.equal(found.hits, said.argmax(1) == follows)
    assert tally.decode_read == tally.decode_keys
    sparse, tally = judged.decode(Sparsity(token_budget=192))
    assert not torch.equal(sparse[0].logprobs, dense[0].logprobs) and torch.equal(sparse[1].logprobs, dense[1].logprobs)
    assert tally.decode_read < tally.decode_keys
    again, _ = judged.decode(Sparsity(token_budget=320))
    assert all(torch.equal(one.logprobs, other.logprobs) for one, other in zip(dense, again, strict=True))
    assert perplexity(dense) == pytest.approx(float(torch.cat([each.logprobs for each in dense]).mean().neg().exp()))


def test_summaries_of_stretches_are_those_of_their_keys():
    layer = Layer.drawn(256)
    keys, values = (x[0].transpose(0, 1).contiguous() for x in (layer.keys, layer.values))
    pool, prompt = layer.pool("float32")
    pools = [PagePool.allocate(4, pool.heads, pool.width, extremes=stretch, moments=None) for stretch in (1, 16)]
    for each in pools:
        page_append(keys, values, each, prompt)
    found = coarser(pools[0], 16)
    assert torch.equal(found.extremes, pools[1].extremes) and found.keys is pools[0].keys


def test_a_pass_key_is_found_if_all_its_tokens_are(toy):
    hidden = Hidden.drawn(Decoder("toy", toy), context=256, keys=3, words=2, seed=0)
    context, tokens = hidden.text.context, hidden.text.tokens
    for place in hidden.places:  # what is asked for was told before
        key = tokens[place.start : place.stop]
        assert any(tokens[at : at + len(key)] == key for at in range(context))
    hits = torch.ones(len(tokens) - context - 1, dtype=torch.bool)
    right = hidden.right(Scores(hits.float(), hits))
    assert [len(each) for each in right] == [2, 2, 2] and all(bool(each.all()) for each in right)
    hits[hidden.places[1][-1] - context - 1] = False
    right = hidden.right(Scores(hits.float(), hits))
    assert [each.tolist() for each in right] == [[True, True], [True, False], [True, True]]
