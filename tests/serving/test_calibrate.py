"""Gates of heads: what they multiply, what trains them, what is found, and that the model is afterwards as before."""

from __future__ import annotations

import json

import induction
import pytest
import torch
from serving_decoders import FAMILIES, VOCABULARY, decoder
from small_tokenizers import byte_level

import gossamer as gs
from gossamer import ops
from gossamer.cli.__main__ import main
from gossamer.ops.paged.pool import Batch, PagePool
from gossamer.serving.calibrating import gates
from gossamer.serving.calibrating.calibration import calibrate
from gossamer.serving.calibrating.gates import gated, gated_attention
from gossamer.serving.calibrating.passkeys import passkeys
from gossamer.serving.checkpoints.loading import Loaded
from gossamer.serving.geometry import Geometry
from gossamer.serving.heads import HeadPattern

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.filterwarnings("error:Converting a tensor")]
WAY = {"sink": 2, "local": 4, "steps": 30, "learning_rate": 0.1}


@pytest.fixture(scope="module")
def inducing():
    return induction.model()


def samples(count=6):
    return [induction.sample(seed) for seed in range(count)]


def test_the_made_model_answers(inducing):
    for tokens, labels in samples():
        said = inducing(tokens[None]).logits[0].argmax(1)
        assert torch.equal(said[labels.nonzero()[:, 0] - 1], tokens[labels])


def test_only_the_head_that_looks_anywhere_keeps_its_gate(inducing):
    """The token before is among the last four; the heads that say nothing need nothing."""
    found = calibrate(inducing, samples(), **WAY)
    assert found.gates[1, 1] > 0.95
    assert found.gates.flatten().sort().values[:3].max() < 0.05
    assert found.streaming(0.75).tolist() == [[True, True], [True, False]]
    assert torch.equal(calibrate(inducing, samples(), **WAY).gates, found.gates)
    again = calibrate(inducing, samples(), recompute=True, **WAY)
    torch.testing.assert_close(again.gates, found.gates, atol=1e-4, rtol=0)
    # Who streams with a window over nearly everything finds it all.
    near = calibrate(inducing, samples(), **WAY | {"local": 76, "sink": 3})
    assert near.gates.max() < 0.05


def test_gates_multiply_the_two_attentions(inducing):
    """At 0, 1 and between; the hidden states are trained as far as they are from those of full attention."""
    tokens, _ = induction.sample(0)
    with gated(inducing, sink=2, local=4) as run, torch.no_grad():
        hidden = []
        for value in (None, 1.0, 0.0):
            run.gates = None if value is None else torch.full((2, 2), value)
            hidden.append(inducing.base_model(tokens[None], use_cache=False).last_hidden_state)
    torch.testing.assert_close(hidden[0], inducing.base_model(tokens[None]).last_hidden_state)
    assert torch.equal(hidden[0], hidden[1]) and (hidden[2] - hidden[0]).abs().max() > 1


@pytest.mark.parametrize("length, sink, local, group, cap", [
    (40, 0, 1, 1, 0.0), (70, 5, 9, 3, 0.0), (70, 3, 64, 2, 4.0), (33, 20, 20, 1, 0.0),
])  # fmt: skip
@pytest.mark.parametrize("block", [16, 256])
def test_both_attentions_are_those_of_pages(monkeypatch, length, sink, local, group, cap, block):
    monkeypatch.setattr(gates, "BLOCK", block)
    generator = torch.Generator().manual_seed(length + sink)
    q = torch.randn(1, 2 * group, length, 32, generator=generator) * 2
    keys, values = torch.randn(2, 1, 2, length, 32, generator=generator) * 2
    pool = PagePool.allocate(-(-length // 64), 2, 32, extremes=None, moments=None)
    batch = Batch.of([length], [length], [list(range(-(-length // 64)))])
    ops.page_append(keys[0].transpose(0, 1).contiguous(), values[0].transpose(0, 1).contiguous(), pool, batch)
    one, two = ({"window": None, "sink": 0}, {"window": local, "sink": sink})
    full, streaming = (
        ops.page_attention(q[0].transpose(0, 1).contiguous(), pool, batch, group=group, cap=cap, **view)
        for view in (one, two)
    )
    how = {"sink": sink, "local": local, "cap": cap}
    gate = torch.tensor([0.25, 1.0])
    share = gate.repeat_interleave(group)[:, None]
    found = [gated_attention(q, keys, values, each, **how)[0] for each in (None, torch.zeros(2), gate)]
    for each, expected in zip(found, (full, streaming, share * full + (1 - share) * streaming), strict=True):
        torch.testing.assert_close(each, expected, atol=1e-5, rtol=1e-4)
    windowed = gated_attention(q, keys, values, None, window=local, **how)[0]
    expected = ops.page_attention(q[0].transpose(0, 1).contiguous(), pool, batch, group=group, cap=cap, window=local)
    torch.testing.assert_close(windowed, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("window, cap", [(None, 0.0), (5, 3.0)])
def test_gradients_are_finite_differences(monkeypatch, window, cap):
    monkeypatch.setattr(gates, "BLOCK", 5)
    torch.manual_seed(1)
    q = torch.randn(1, 4, 12, 4, dtype=torch.float64, requires_grad=True)
    keys, values = (torch.randn(1, 2, 12, 4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    gate = torch.tensor([0.3, 0.9], dtype=torch.float64, requires_grad=True)

    def attend(*inputs):
        return gated_attention(*inputs, sink=1, local=3, window=window, cap=cap)

    assert torch.autograd.gradcheck(attend, (q, keys, values, gate), fast_mode=True)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_gives_its_own_hidden_states(family):
    """With gates of 1: scales, caps, groups and windows are the model's."""
    model = decoder(family)
    tokens = torch.randint(2, VOCABULARY, (1, 70), generator=torch.Generator().manual_seed(3))
    model.set_attn_implementation("eager")
    expected = model.base_model(tokens).last_hidden_state
    with gated(model, sink=2, local=8) as run, torch.no_grad():
        run.gates = torch.ones(8, 8)[:, : model.config.num_attention_heads]
        run.gates = run.gates[:, : getattr(model.config, "num_key_value_heads", 4) or 4]
        found = model.base_model(tokens, use_cache=False).last_hidden_state
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)


def test_windows_of_the_model_keep_their_gates():
    found = calibrate(decoder("gemma2"), passkeys(vocabulary=VOCABULARY), sink=8, local=32, steps=3, length=300)
    kinds = decoder("gemma2").config.layer_types
    for kind, row in zip(kinds, found.gates, strict=True):
        assert (kind == "sliding_attention") == bool((row == 1).all())


class Ended(Exception):
    pass


@pytest.mark.parametrize("ending", [None, KeyboardInterrupt, Ended])
@pytest.mark.parametrize("recompute", [False, True])
def test_the_model_is_afterwards_as_it_was(ending, recompute):
    model = induction.model()
    model.train()
    model.model.layers[1].eval()
    model.model.layers[0].mlp.up_proj.weight.requires_grad_(False)
    model.set_attn_implementation("sdpa")
    model.lm_head.weight.grad = torch.ones_like(model.lm_head.weight)

    def state():
        return (
            [(name, each.requires_grad, each.grad is None, each.sum()) for name, each in model.named_parameters()],
            [(name, each.training, sorted(vars(each))) for name, each in model.named_modules()],
            [model.config._attn_implementation, model.model.config._attn_implementation],
            torch.is_grad_enabled(), torch.random.get_rng_state().sum(),
        )  # fmt: skip

    def progress(done, steps, distance, mean):
        assert model.config._attn_implementation == gates.NAME and not model.training
        if ending is not None and done == 2:
            raise ending

    before = state()
    if ending is None:
        calibrate(model, samples(2), **WAY | {"steps": 2}, recompute=recompute, progress=progress)
    else:
        with pytest.raises(ending):
            calibrate(model, samples(2), **WAY, recompute=recompute, progress=progress)
    assert state() == before
    model.set_attn_implementation(gates.NAME)
    with pytest.raises(RuntimeError, match="alone"):
        model(torch.zeros(1, 3, dtype=torch.int64))


def test_it_needs_neither_gradients_of_the_caller_nor_two_at_once(inducing):
    with torch.no_grad():
        calibrate(inducing, samples(1), **WAY | {"steps": 1})
    with gated(inducing, sink=1, local=1), pytest.raises(RuntimeError, match="already"):
        calibrate(inducing, samples(1), **WAY)


TOKENS, LABELS = induction.sample(0)


@pytest.mark.parametrize("given, way, match", [
    ([], {}, "samples must have at least one"),
    ([(TOKENS.float(), LABELS)], {}, "int64"),
    ([(TOKENS, LABELS.int())], {}, "bool"),
    ([(TOKENS, LABELS), (TOKENS, LABELS & False)], {}, "0 of them True"),
    ([(TOKENS, LABELS[1:])], {}, r"\[79\]"),
    ([(TOKENS, LABELS | True)], {}, "not the first"),
    ([(TOKENS + 1, LABELS)], {}, "from 0 to 15, got 1 to 16"),
    ([(TOKENS.repeat(4), LABELS.repeat(4))], {}, "256 tokens, got 320"),
    ([(TOKENS, LABELS)], {"sink": 40, "local": 40}, "80 tokens, got 80"),
    ([(TOKENS, LABELS)], {"sink": -1}, "sink must be .* got -1"),
    ([(TOKENS, LABELS)], {"local": 0}, "local must be"),
    ([(TOKENS, LABELS)], {"steps": 0}, "steps must be"),
    ([(TOKENS, LABELS)], {"learning_rate": float("nan")}, "learning_rate must be"),
    ([(TOKENS, LABELS)], {"regularization": -1.0}, "regularization must be"),
])  # fmt: skip
def test_bad_input_is_named(inducing, given, way, match):
    with pytest.raises(ValueError, match=match):
        calibrate(inducing, given, **WAY | way)


def test_numbers_that_are_none_are_an_error():
    model = induction.model()
    with torch.no_grad():
        model.model.layers[0].self_attn.v_proj.weight[0, 0] = torch.nan
    with pytest.raises(ValueError, match="step 0 is nan"):
        calibrate(model, samples(1), **WAY)


def test_a_model_known_by_name_brings_its_gates(monkeypatch):
    """Found by `LLM`; a pattern that is given stays, and so does what has no name."""
    config = induction.transformers.LlamaConfig(
        vocab_size=16, hidden_size=48, intermediate_size=16, num_hidden_layers=30, num_attention_heads=3,
        num_key_value_heads=3, max_position_embeddings=256,
    )  # fmt: skip
    loaded = Loaded(induction.transformers.LlamaForCausalLM(config).eval(), None, "smollm2")
    monkeypatch.setattr("gossamer.serving.llm.load", lambda *_, **__: loaded)
    half = gs.serving.Sparsity(static=0.5)
    found = gs.serving.LLM("smollm2", sparsity=half, memory=2**24).engine.sparsity.pattern
    assert sorted(each.name for each in found.iterdir()) == ["config.json", "full_attention_heads.tsv"]
    streaming = HeadPattern.load(found).streaming(0.5)
    assert streaming.shape == (30, 3) and streaming.sum() == 45
    other = HeadPattern(torch.ones(30, 3, dtype=torch.float64))
    assert gs.serving.Sparsity(static=0.5, pattern=other).of("smollm2").pattern is other
    for same, model in ((half, "another"), (half, loaded.model), (gs.serving.Sparsity(), "smollm2")):
        assert same.of(model) is same


# The command.


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model with a tokenizer, as a user has it."""
    place, tokenizer = tmp_path_factory.mktemp("model"), byte_level()
    config = induction.transformers.LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=1024, eos_token_id=0, bos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    induction.transformers.LlamaForCausalLM(config).save_pretrained(place)
    tokenizer.save_pretrained(place)
    return place


@pytest.fixture(scope="module")
def loaded(folder):
    return gs.serving.load(folder)


FLAGS = ("--length", "400", "--keys", "2", "--steps", "2", "--sink", "16", "--local", "32")


def test_the_command_writes_what_it_found(folder, loaded, tmp_path, capfd):
    file = tmp_path / "pattern.tsv"
    assert main(["calibrate", str(folder), "--out", str(file), *FLAGS]) == 0
    out = capfd.readouterr().out
    assert "layer  gates in tenths\n    0  99\n    1  99\n" in out and "with static=0.5 2 stream" in out
    found = HeadPattern.load(file)
    assert found.gates.shape == (2, 2) and [each.name for each in tmp_path.iterdir()] == ["pattern.tsv"]
    split = gs.serving.Sparsity(static=0.5, pattern=file).parts(Geometry.of(loaded.model.config))
    assert sum(part.heads.numel() for layer in split for part in layer if part.view.window == 256) == 2
    (tmp_path / "book.txt").write_text("Once there was a cat. " * 500)
    assert main(["calibrate", str(folder), "--out", str(file), *FLAGS, "--overwrite"]) == 0
    more = ("--text", str(tmp_path / "book.txt"), "--seed", "1", "--static", "0.25")
    assert main(["calibrate", str(folder), "--out", str(tmp_path / "gates"), *FLAGS, *more]) == 0
    assert not torch.equal(HeadPattern.load(tmp_path / "gates").gates, found.gates)
    how = json.loads((tmp_path / "gates" / "config.json").read_text())
    assert (how["sink_size"], how["recent_size"], how["text"], how["seed"]) == (16, 32, "book.txt", 1)
    again = ["calibrate", str(folder), "--out", str(tmp_path / "gates"), *FLAGS]
    assert main(again) == 2 and "holds a calibration already; --overwrite replaces it" in capfd.readouterr().err
    assert main([*again, "--overwrite"]) == 0


def test_ctrl_c_writes_nothing(folder, loaded, tmp_path, capfd, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("gossamer.cli.calibrate.load", lambda *_, **__: loaded)
    monkeypatch.setattr("gossamer.serving.calibrating.calibration._predicting", stop)
    assert main(["calibrate", str(folder), "--out", str(tmp_path / "p.tsv"), *FLAGS]) == 130
    assert "nothing was written" in capfd.readouterr().err and not list(tmp_path.iterdir())


@pytest.mark.parametrize("flags, match", [
    (("--static", "1.5"), "--static must be from 0 to 1, got 1.5"),
    (("--steps", "0"), "steps must be"),
    (("--keys", "40"), "keys must be an integer from 1 to 32, got 40"),
    (("--length", "60"), "length, for 2 keys of 8 words, must be"),
    (("--length", "2000"), "the model's 1024 tokens"),
    (("--sink", "-1"), "sink must be"),
    (("--local", "600"), "longer than sink and local"),
    (("--threads", "0"), "--threads must be"),
    (("--learning-rate", "0"), "learning_rate must be"),
    (("--text", "SHORT"), "text must have at least"),
    (("--text", "BYTES"), "not a text in UTF-8"),
    (("--text", "NONE"), "NONE"),
    (("--out", "FOLDER.tsv/x.tsv/y.tsv"), "cannot be written"),
    (("--out", "PLACE"), "is a folder"),
    (("--out", "OLD.tsv"), "--out OLD.tsv is there already; --overwrite replaces it"),
    (("--out", "NOTE.txt", "--overwrite"), "--out NOTE.txt is there already and is not a table of gates"),
    (("--out", "THEIRS", "--overwrite"), "THEIRS/config.json cannot be read: it is not of this program"),
    (("--out", "NOTES", "--overwrite"), "--out NOTES holds files but no config.json"),
])  # fmt: skip
def test_bad_flags_are_named_before_the_work(folder, loaded, tmp_path, capfd, monkeypatch, flags, match):
    monkeypatch.setattr("gossamer.cli.calibrate.load", lambda *_, **__: loaded)
    monkeypatch.setattr("gossamer.serving.calibrating.passkeys.python_topics", lambda: "the cat sat. " * 900)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "SHORT").write_text("too short")
    (tmp_path / "BYTES").write_bytes(b"\xff\xfe\xff")
    (tmp_path / "OLD.tsv").write_text("0.5 1\n")
    (tmp_path / "NOTE.txt").write_text("mine")
    for place, name in (("THEIRS", "config.json"), ("NOTES", "a.txt")):
        (tmp_path / place).mkdir()
        (tmp_path / place / name).write_text('{"sink_size": 4, "recent_size": 8}')
    (tmp_path / "FOLDER.tsv").mkdir()
    (tmp_path / "FOLDER.tsv" / "x.tsv").write_text("a file")
    (tmp_path / "PLACE" / "full_attention_heads.tsv").mkdir(parents=True)
    assert main(["calibrate", str(folder), "--out", "p.tsv", *FLAGS, *flags]) == 2
    said = capfd.readouterr().err
    assert match in said and ("--overwrite replaces" in said) == ("OLD.tsv" in flags)
    assert not (tmp_path / "p.tsv").exists() and (tmp_path / "NOTE.txt").read_text() == "mine"


@pytest.mark.parametrize("overwrite", [(), ("--overwrite",)])
def test_a_model_is_not_replaced_by_its_gates(folder, capfd, monkeypatch, overwrite):
    """Neither itself, by whatever name, nor another one."""
    monkeypatch.chdir(folder.parent)
    before = {each.name: each.read_bytes() for each in folder.iterdir()}
    for model, out, said in (
        (folder, f"{folder.name}/", "is the model itself"),
        ("another", folder, "nothing here is replaced; choose another --out"),
    ):
        assert main(["calibrate", str(model), "--out", str(out), *FLAGS, *overwrite]) == 2
        shown = capfd.readouterr().err
        assert said in shown and "--overwrite" not in shown
    assert {each.name: each.read_bytes() for each in folder.iterdir()} == before
