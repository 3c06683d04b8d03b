"""The decoding sections of the conv suite: their candidates compute the same thing, and they run on toy sizes."""

import json

import pytest
import torch

from gossamer import bench
from gossamer.bench import Settings
from gossamer.bench.conv import decode, gemv, quality

QUICK = Settings(quick=True, reps=1)


@pytest.mark.parametrize("zeros", [0.0, 0.5, 1.0])
def test_products_agree(zeros):
    weight = torch.randn(24, 40)
    by_output = weight.t().contiguous()
    copies = {"input": lambda: weight, "output": lambda: by_output, "whole": [by_output]}
    calls = gemv.candidates(24, 40, 3, zeros, copies, {"dtype": torch.float32})
    assert {"onednn", "gossamer"} <= set(calls)
    operands = torch.Generator().manual_seed(5)
    shapes = [24, 24, 24, 24, 40, 24, 24, 24]
    drawn = []
    for width in shapes:
        masks = torch.rand(gemv.DRAWS, 3, width, generator=operands) >= zeros
        drawn.append((torch.randn(gemv.DRAWS, 3, width, generator=operands) * masks)[0])
    for (name, call), x in zip(calls.items(), [*drawn[:4], *drawn[5:]], strict=False):
        expected = x @ weight * (drawn[4] if name == "gated_mv" else 1)
        torch.testing.assert_close(call(), expected, rtol=1e-4, atol=1e-4, msg=name)


def test_every_call_gets_another_mask_and_another_copy():
    copies = gemv._copies(torch.randn(8, 8))
    assert len({copies().data_ptr() for _ in range(gemv.COPIES)}) == gemv.COPIES
    calls = gemv.candidates(
        8, 8, 1, 0.5, {"input": copies, "output": copies, "whole": [copies()]}, {"dtype": torch.float32}
    )
    assert len({tuple(calls["skip_mv"]().flatten().tolist()) for _ in range(8)}) > 4


def test_a_decoded_token_is_what_the_whole_sequence_says():
    pytest.importorskip("transformers")
    model = decode.llama(quick=True)
    ids = torch.randint(256, (1, decode.CONTEXT + 3))
    with torch.inference_mode():
        run = decode.step(model, ids)
        for at in (0, 1, 2, 0):
            row = torch.cat((ids[:, : decode.CONTEXT], ids[:, decode.CONTEXT + at :][:, :1]), 1)
            torch.testing.assert_close(run()[0, -1], model(row).logits[0, -1], rtol=1e-4, atol=1e-5)


def test_sections_run(monkeypatch):
    pytest.importorskip("transformers")
    rows = {section.__name__: list(section.rows(QUICK)) for section in (gemv, decode, quality)}
    json.dumps(rows)
    for row in rows["gossamer.bench.conv.decode"]:
        assert row["realised"] == pytest.approx(row["expected"], abs=0.05)
    closed = {(row["model"], row["thresholds"]): row["gates"] for row in rows["gossamer.bench.conv.quality"]}
    assert closed["SiLU", "gates"] == pytest.approx(0.5, abs=0.02) and closed["SiLU", "none"] == 0
    assert all(row["perplexity"] > 1 for row in rows["gossamer.bench.conv.quality"])


def test_what_measures_a_cpu_is_refused_on_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(ValueError, match=r"only names \['kernels'\], which measure a CPU; .* \['gemv'\]"):
        bench.run("conv", Settings(device="cuda", only=("kernels", "gemv")))
