"""Law: what is loaded computes what was saved; what is not whole, or is no causal decoder, is refused by name."""

from __future__ import annotations

import json
import logging
import os
import resource
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from gossamer.serving.checkpoints import gguf_header, gguf_weights
from gossamer.serving.checkpoints.loading import load

transformers = pytest.importorskip("transformers")
pytest.importorskip("gguf")

import tiny_checkpoints as tiny  # noqa: E402

IDS = torch.arange(2, 40)[None]


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refused)
    monkeypatch.setattr(socket, "getaddrinfo", refused)


def _logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits


_LLAMA3 = {"rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
           "original_max_position_embeddings": 32}  # fmt: skip
FOLDERS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "llama": ("Llama", {}, {}),
    "tied": ("Llama", {"tie_word_embeddings": True}, {}),
    "llama3": ("Llama", {"rope_parameters": _LLAMA3}, {}),
    "sharded": ("Llama", {}, {"max_shard_size": "100KB"}),
    "qwen3, windows": ("Qwen3", {"head_dim": 32, "use_sliding_window": True, "sliding_window": 8}, {}),
    "gemma3": ("Gemma3Text", {"head_dim": 32, "sliding_window": 8}, {}),
    "opt": ("OPT", {"ffn_dim": 96, "word_embed_proj_dim": 64}, {}),
}


@pytest.mark.parametrize(("kind", "settings", "saving"), FOLDERS.values(), ids=FOLDERS)
def test_a_folder_gives_the_model_that_was_saved(tmp_path, kind, settings, saving):
    made = tiny.model(kind, **settings)
    loaded = load(str(tiny.folder(tmp_path, made, **saving)))
    assert len(list(tmp_path.glob("*.safetensors"))) > 1 or not saving
    assert torch.equal(_logits(loaded.model), _logits(made))
    assert not loaded.model.training and loaded.source == str(tmp_path)
    assert loaded.tokenizer.decode(loaded.tokenizer("then an äpple")["input_ids"]) == "then an äpple"


GGUFS: dict[str, tuple[str, dict[str, Any], str, dict[str, Any], dict[str, Any]]] = {
    "llama": ("Llama", {}, "llama", {}, {}),
    "llama, biases": ("Llama", {"attention_bias": True}, "llama", {}, {}),
    "tied": ("Llama", {"tie_word_embeddings": True}, "llama", {}, {}),
    "wide heads": ("Llama", {"head_dim": 32}, "llama", {}, {}),
    "mistral": ("Mistral", {"sliding_window": 8}, "llama", {"attention.sliding_window": 8}, {}),
    "qwen2": ("Qwen2", {}, "qwen2", {}, {}),
    "qwen3": ("Qwen3", {"head_dim": 32}, "qwen3", {}, {}),
    "linear": ("Llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 500.0, "factor": 4.0}}, "llama",
               {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}, {}),
    "yarn": ("Llama", {"rope_parameters": {"rope_type": "yarn", "rope_theta": 500.0, "factor": 4.0,
                                           "original_max_position_embeddings": 32}}, "llama",
             {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 32}, {}),
    "llama3": ("Llama", {"rope_parameters": _LLAMA3}, "llama", {}, {"rope_freqs.weight": "from the model"}),
}  # fmt: skip


@pytest.mark.parametrize(("kind", "settings", "architecture", "metadata", "tensors"), GGUFS.values(), ids=GGUFS)
def test_a_gguf_file_gives_the_model_that_was_written(tmp_path, kind, settings, architecture, metadata, tensors):
    made = tiny.model(kind, **settings)
    if tensors:  # the factors that the format has in place of llama3's settings
        plain = 500.0 ** -(torch.arange(0, 16, 2) / 16)
        tensors = {"rope_freqs.weight": (plain / made.model.rotary_emb.inv_freq).numpy()}
    tiny.write_gguf(tmp_path / "a.gguf", made, architecture, metadata=metadata, tensors=tensors)
    loaded = load(tmp_path)
    assert type(loaded.model) is type(made) and loaded.source == str(tmp_path / "a.gguf")
    torch.testing.assert_close(_logits(loaded.model), _logits(made), rtol=1e-4, atol=1e-4 if tensors else 1e-5)
    assert loaded.tokenizer.decode(loaded.tokenizer("then an äpple")["input_ids"]) == "then an äpple"
    assert loaded.tokenizer("the")["input_ids"] == tiny.tokenizer()("the")["input_ids"]
    assert (loaded.model.config.bos_token_id, loaded.model.generation_config.eos_token_id) == (0, 1)


@pytest.mark.parametrize("packed", ["F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_1"])
def test_packed_blocks_become_the_numbers_that_transformers_reads(tmp_path, packed):
    path = tiny.write_gguf(tmp_path / "a.gguf", tiny.model(), "llama", packed=packed)
    ours = load(path).model.state_dict()
    pytest.importorskip("accelerate")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="a.gguf", dtype=torch.float32)
    assert ours.keys() == theirs.state_dict().keys()
    assert all(torch.equal(ours[name], value) for name, value in theirs.state_dict().items())


def test_architectures_without_a_table_are_read_by_transformers_and_looked_at(tmp_path, monkeypatch):
    pytest.importorskip("accelerate")
    monkeypatch.setattr(gguf_weights, "ARCHITECTURES", ())
    made = tiny.model(rope_parameters={"rope_type": "linear", "rope_theta": 500.0, "factor": 4.0})
    said = {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}
    path = tiny.write_gguf(tmp_path / "a.gguf", made, "llama", metadata=said, packed="Q8_0")
    loaded = load(path)
    read = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="a.gguf", dtype=torch.float32)
    assert all(torch.equal(read.state_dict()[name], value) for name, value in loaded.model.state_dict().items())
    assert torch.equal(loaded.model.model.rotary_emb.inv_freq, made.model.rotary_emb.inv_freq)
    bias = {"blk.0.attn_q.bias": torch.ones(64).numpy()}  # transformers leaves it out without a word
    tiny.write_gguf(tmp_path / "b.gguf", made, "llama", tensors=bias)
    with pytest.raises(ValueError, match=r"b.gguf holds (\d+) weights, of which the model reads \d+"):
        load(tmp_path / "b.gguf")
    tiny.write_gguf(tmp_path / "c.gguf", made, "llama", metadata={"attention.sliding_window": 8})
    with pytest.raises(ValueError, match=r"c.gguf says attention.sliding_window 8, which transformers reads as"):
        load(tmp_path / "c.gguf")


def test_dtype_device_and_attention(tmp_path, caplog):
    made = tiny.model()
    folder = tiny.folder(tmp_path / "half", made.to(torch.bfloat16), words=False)
    path = tiny.write_gguf(tmp_path / "a.gguf", made.float(), "llama", words=False)
    with caplog.at_level(logging.WARNING):
        cases = [(folder, None, torch.bfloat16), (folder, "float32", torch.float32), (path, None, torch.float32),
                 (path, torch.float16, torch.float16)]  # fmt: skip
        for source, asked, has in cases:
            loaded = load(source, dtype=asked, device="cpu", attn_implementation="eager")
            assert {p.dtype for p in loaded.model.parameters()} == {has}
            assert loaded.model.config._attn_implementation == "eager" and loaded.tokenizer is None
    assert str(folder) in caplog.text and "has no tokenizer" in caplog.text
    assert load(folder).model.config._attn_implementation == "sdpa"
    with pytest.raises(ValueError, match="dtype is 'int8', expected float32"):
        load(folder, dtype="int8")


def test_words_that_the_model_does_not_have_are_named(tmp_path, caplog):
    words = tiny.tokenizer()
    words.add_tokens(["one more"])
    words.save_pretrained(tiny.folder(tmp_path, tiny.model(), words=False))
    with caplog.at_level(logging.WARNING):
        load(tmp_path)
    assert "no row for the tokens ['one more']" in caplog.text


def test_a_model_object_is_handed_back_as_it_is():
    made = tiny.model()
    loaded = load(made)
    assert loaded.model is made and loaded.tokenizer is None and loaded.source == "LlamaForCausalLM"
    with pytest.raises(ValueError, match="dtype and device are for models that are read"):
        load(made, dtype=torch.float32)
    for wrong, said in [(made.model, "no causal head"), (tiny.model("Bert", "Model"), "no causal decoder")]:
        with pytest.raises(ValueError, match=said):
            load(wrong)
    for no_model in (3, torch.nn.Linear(2, 2), None):
        with pytest.raises(TypeError, match=f"model is a {type(no_model).__name__}; expected a name"):
            load(no_model)


def _settings(folder: Path, **changed: Any) -> None:
    written = json.loads((folder / "config.json").read_text()) | changed
    (folder / "config.json").write_text(json.dumps(written))


def _cut(path: Path, count: int) -> None:
    path.write_bytes(path.read_bytes()[:count])


def _rename(folder: Path, before: str, after: str) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    weights[after] = weights.pop(before)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def _shards(folder: Path) -> None:
    tiny.folder(folder, tiny.model(), max_shard_size="100KB")
    (folder / "model.safetensors").unlink()


BAD_FOLDERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no weights": (lambda f: (f / "model.safetensors").unlink(), r"has no weights: expected model.safetensors"),
    "a pickle": (
        lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"), r"pytorch_model.bin is a pickle"
    ),
    "no config": (lambda f: (f / "config.json").unlink(), r"has no config.json and no .gguf"),
    "config cut": (lambda f: _cut(f / "config.json", 100), r"config.json cannot be read: it is not JSON"),
    "config a list": (lambda f: (f / "config.json").write_text("[]"), r"config.json holds a list, expected an object"),
    "weights cut": (lambda f: _cut(f / "model.safetensors", 90_000), r"model.safetensors cannot be read"),
    "weights cut in their header": (lambda f: _cut(f / "model.safetensors", 7), r"model.safetensors cannot be read"),
    "weights a pipe": (
        lambda f: ((f / "model.safetensors").unlink(), os.mkfifo(f / "model.safetensors")), r"it is a pipe"
    ),
    "a weight missing": (
        lambda f: _rename(f, "model.layers.1.mlp.up_proj.weight", "x"), r"lacks the weights model.layers.1.mlp.up_proj"
    ),
    "a shard missing": (
        lambda f: (_shards(f), sorted(f.glob("model-0*"))[1].unlink()), r"lacks model-00002-of-\d+.safetensors \(1 of"
    ),
    "a shard cut": (lambda f: (_shards(f), _cut(sorted(f.glob("model-0*"))[1], 50)), r"model-00002.* cannot be read"),
    "a shard elsewhere": (
        lambda f: (_shards(f), (f / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../b"}}')),
        r"names '../b', expected files of its own folder",
    ),
    "an index without a map": (
        lambda f: (_shards(f), (f / "model.safetensors.index.json").write_text("{}")), r"has no weight_map"
    ),
    "unknown architecture": (lambda f: _settings(f, model_type="lama"), r"unknown model_type 'lama'"),
    "unknown rope": (
        lambda f: _settings(f, rope_parameters={"rope_type": "spiral", "rope_theta": 1e4, "factor": 2.0}),
        r"unknown RoPE type 'spiral'; expected default, linear",
    ),
    "quantized": (
        lambda f: _settings(f, quantization_config={"quant_method": "awq", "bits": 4}), r"is quantized; expected float"
    ),
    "another head": (
        lambda f: _settings(f, architectures=["LlamaForSequenceClassification"]),
        r"holds a LlamaForSequenceClassification, which has no causal head; expected LlamaForCausalLM",
    ),
    "code of its own": (
        lambda f: _settings(f, model_type="mine", auto_map={"AutoConfig": "mine.C"}), r"unknown model_type 'mine'"
    ),
    "an adapter": (lambda f: (f / "adapter_config.json").write_text("{}"), r"holds an adapter"),
    "a wider model": (lambda f: _settings(f, intermediate_size=128), r"has weights of other shapes"),
    "a huge model": (lambda f: _settings(f, hidden_size=1 << 40), r"vocab_size is \d+, which \d+ weights do not fill"),
    "a deep model": (lambda f: _settings(f, num_hidden_layers=1 << 40), r"but there are 21 tensors"),
    "no layers": (lambda f: _settings(f, num_hidden_layers=0), r"num_hidden_layers is 0, expected an integer"),
    "a list for a name": (lambda f: _settings(f, model_type=["a"]), r"config.json: model_type is \['a'\], expected"),
    "packing that is none": (lambda f: _settings(f, quantization_config=7), r"config.json: quantization_config is 7"),
    "a text for a list": (lambda f: _settings(f, architectures="a"), r"config.json: architectures is 'a', expected a"),
    "no dtype": (lambda f: _settings(f, dtype="nope"), r"config.json: dtype is 'nope', expected a dtype of torch"),
    "an odd head": (
        lambda f: _settings(f, head_dim=7), r"config.json .*its head_dim is 7: RoPE requires an even rotary dimension"
    ),
    "a head of nothing": (lambda f: _settings(f, head_dim=-1), r"config.json: head_dim is -1, expected an integer"),
    "no heads": (lambda f: _settings(f, num_attention_heads=0), r"config.json .*its num_attention_heads is 0: "),
    "odd layers": (lambda f: _settings(f, layer_types=7), r"config.json .*its layer_types is 7: "),
    "unknown activation": (
        lambda f: _settings(f, hidden_act="nope"), r"hidden_act of its config.json is 'nope', which transformers does"
    ),
    "no room for a token": (
        lambda f: _settings(f, max_position_embeddings=0), r"config.json: max_position_embeddings is 0, expected"
    ),
    "end tokens cut": (
        lambda f: _cut(f / "generation_config.json", 60), r"generation_config.json cannot be read: it is not JSON"
    ),
    "end tokens empty": (lambda f: _cut(f / "generation_config.json", 0), r"generation_config.json cannot be read"),
    "end tokens no text": (
        lambda f: (f / "generation_config.json").write_bytes(b"\xff\xfe{}"), r"generation_config.json cannot be read"
    ),
    "end tokens no numbers": (
        lambda f: (f / "generation_config.json").write_text('{"eos_token_id": [1, "a"]}'),
        r"generation_config.json: eos_token_id is \[1, 'a'\], expected a number of a token",
    ),
    "tokenizer cut": (lambda f: _cut(f / "tokenizer.json", 300), r"the tokenizer of .* cannot be read"),
}  # fmt: skip


@pytest.mark.parametrize(("harm", "said"), BAD_FOLDERS.values(), ids=BAD_FOLDERS)
def test_a_bad_folder_is_refused_by_name(tmp_path, harm, said):
    tiny.folder(tmp_path, tiny.model())
    harm(tmp_path)
    with pytest.raises((ValueError, FileNotFoundError), match=said) as caught:
        load(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_a_folder_may_lack_its_end_tokens(tmp_path):
    tiny.folder(tmp_path, tiny.model())
    (tmp_path / "generation_config.json").unlink()
    assert load(tmp_path).model.generation_config.eos_token_id == 1  # of config.json


@pytest.mark.parametrize(("kind", "head", "said"), [
    ("Bert", "ForMaskedLM", "no causal decoder"), ("T5", "ForConditionalGeneration", "an encoder with a decoder"),
])  # fmt: skip
def test_other_kinds_of_models_are_refused(tmp_path, kind, head, said):
    tiny.folder(tmp_path, tiny.model(kind, head), words=False)
    with pytest.raises(ValueError, match=said):
        load(tmp_path)


BAD_GGUFS: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "one of several": ({"/split.count": 3}, {}, "it is one of 3 parts"),
    "no heads": ({"attention.head_count": 0}, {}, r"llama.attention.head_count is 0, expected a positive number"),
    "a text for a number": ({"block_count": "2"}, {}, r"llama.block_count is '2', expected a positive number"),
    "deep": ({"block_count": (1 << 32) - 1}, {}, "but there are 21 tensors"),
    "fewer layers": ({"block_count": 1}, {}, "do not use|holds .* weights|has no place"),
    "more layers": ({"block_count": 3}, {}, "lacks the weights model.layers.2"),
    "more heads": ({"attention.head_count": 8}, {}, "has weights of other shapes|cannot be read"),
    "longrope": ({"rope.scaling.type": "longrope", "rope.scaling.factor": 4.0}, {}, "scales RoPE .* longrope"),
    "yarn of its own": ({"rope.scaling.type": "yarn", "rope.scaling.yarn_ext_factor": 2.0}, {}, "scales RoPE"),
    "an unknown tensor": ({}, {"blk.0.ffn_gate_inp.weight": torch.zeros(2, 64).numpy()}, "has no place in the model"),
    "odd window": ({"attention.sliding_window": 0}, {}, "sliding_window is 0, expected a positive number"),
}


@pytest.mark.parametrize(("metadata", "tensors", "said"), BAD_GGUFS.values(), ids=BAD_GGUFS)
def test_a_bad_gguf_file_is_refused_by_name(tmp_path, metadata, tensors, said):
    path = tiny.write_gguf(tmp_path / "a.gguf", tiny.model(), "llama", metadata=metadata, tensors=tensors)
    with pytest.raises(ValueError, match=said) as caught:
        load(path)
    assert str(path) in str(caught.value)


def test_what_leads_nowhere_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no model 'HuggingFaceTB/SmolLM2-135M'; expected a folder"):
        load("HuggingFaceTB/SmolLM2-135M")
    with pytest.raises(FileNotFoundError, match=r"fetch it with: gossamer model smollm2"):
        load("smollm2")
    (tmp_path / "a.txt").write_text("no model")
    with pytest.raises(ValueError, match=r"a.txt is a file, expected a folder, or a file whose name ends with .gguf"):
        load(tmp_path / "a.txt")
    for name in ("a.gguf", "b.gguf"):
        tiny.write_gguf(tmp_path / name, tiny.model(), "llama")
    with pytest.raises(ValueError, match=r"holds several GGUF files: a.gguf, b.gguf; expected one"):
        load(tmp_path)
    os.mkfifo(tmp_path / "pipe.gguf")
    with pytest.raises(ValueError, match=r"pipe.gguf cannot be read: it is a pipe"):
        load(tmp_path / "pipe.gguf")


def test_a_gguf_file_cut_anywhere_is_refused(tmp_path):
    path = tiny.write_gguf(tmp_path / "a.gguf", tiny.model(), "llama")
    whole = path.read_bytes()
    last = max(tensor.start + tensor.bytes for tensor in gguf_header.read(path).tensors.values())
    first = min(tensor.start for tensor in gguf_header.read(path).tensors.values())
    cut = tmp_path / "cut.gguf"
    for length in [*range(0, 200), *range(200, first, 97), *range(first, last, 30_011), last - 1]:
        cut.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"cut.gguf cannot be read: it is (cut off|empty|no GGUF)"):
            load(cut)


def _limited() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def test_a_damaged_gguf_header_is_refused_or_read(tmp_path):
    """Bytes of the header changed at random: a model or one ValueError, and no memory for what the file only claims."""
    path = tiny.write_gguf(tmp_path / "a.gguf", tiny.model(), "llama")
    whole = path.read_bytes()
    first = min(tensor.start for tensor in gguf_header.read(path).tensors.values())
    load(path)
    before, refused = _limited(), 0
    generator = torch.Generator().manual_seed(0)
    bad = tmp_path / "bad.gguf"
    for _ in range(120):
        content = bytearray(whole)
        for _ in range(int(torch.randint(1, 4, (), generator=generator))):
            place = int(torch.randint(4, first, (), generator=generator))
            content[place] = int(torch.randint(0, 256, (), generator=generator))
        bad.write_bytes(content)
        try:
            load(bad)
        except ValueError as error:
            assert str(bad) in str(error)
            refused += 1
    assert 20 < refused < 120
    assert _limited() - before < 300_000  # KiB


@pytest.mark.slow  # a real model generates
def test_a_real_model_answers(smollm2):
    loaded = load(smollm2)
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    asked = loaded.tokenizer.apply_chat_template(
        chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    answer = loaded.model.generate(**asked, max_new_tokens=10, do_sample=False)[0, asked["input_ids"].shape[1] :]
    assert loaded.tokenizer.decode(answer, skip_special_tokens=True) == "The capital of France is Paris."
