"""On a GPU the engine has the tokens that it has on a CPU, sparse or dense."""

from __future__ import annotations

import copy

import pytest
import torch
from serving_decoders import decoder, prompts

from gossamer.serving import Antidiagonal, Engine, Sampling, SparseCache, Sparsity

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize(
    "sparsity",
    [
        Sparsity(),
        Sparsity(static=0.5, sink=64, local=64, token_budget=192),
        Sparsity(token_budget=192, max_error=0.5),
        Sparsity(token_budget=192, select_per="q_head", stored="int8"),
        Sparsity(prefill=Antidiagonal(mass=0.5, beyond=0)),
    ],
    ids=["dense", "streaming", "bounded", "each head", "policy"],
)
@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_tokens_of_the_cpu(family, sparsity):
    requests, found = prompts(300, 20, 129), []
    for device in ("cpu", "cuda"):
        engine = Engine(copy.deepcopy(decoder(family)).to(device), sparsity=sparsity, end=[], max_length=512)
        jobs = [engine.add(prompt, Sampling(max_tokens=16)) for prompt in requests]
        while engine.busy:
            engine.step()
        found.append([job.tokens for job in jobs])
    assert found[0] == found[1]


def test_a_cache_with_padding():
    model = copy.deepcopy(decoder("llama")).to("cuda")
    ids, mask = torch.randint(2, 200, (2, 100), device="cuda"), torch.ones(2, 100, dtype=torch.long, device="cuda")
    mask[1, :37] = 0
    more = {"attention_mask": mask, "max_new_tokens": 16, "do_sample": False}
    model.set_attn_implementation("eager")
    expected = model.generate(ids, **more)
    model.set_attn_implementation("gossamer")
    assert torch.equal(model.generate(ids, past_key_values=SparseCache(model.config), **more), expected)
