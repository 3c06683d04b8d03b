"""The suite of attention runs, and the rivals that it times compute the same."""

import torch

from gossamer import bench
from gossamer.bench.attention.decode import rivals
from gossamer.bench.attention.layer import GROUP, Layer, newest, queries, torch_attention
from gossamer.ops import page_attention


def test_every_section_runs_and_makes_its_tables():
    result = bench.run("attention", bench.Settings(quick=True, reps=1))
    for name, section in bench.sections("attention").items():
        rows = result["sections"][name]["rows"]
        for table in (section.table, *section.further.values()):
            assert rows and table.text(rows).count("\n") == len(rows) + 2


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
