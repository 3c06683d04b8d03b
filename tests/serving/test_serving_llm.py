"""Texts in, texts out: the words of many requests, stop strings, streams; and the command that prints them."""

from __future__ import annotations

import copy
import os
import re
import signal
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from forked import CLI, Forked
from serving_decoders import transformers
from small_tokenizers import byte_level

import gossamer as gs
from gossamer.cli.__main__ import main

pytestmark = pytest.mark.filterwarnings("ignore")
TEMPLATE = "{% for m in messages %}<|user|>{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}: {% endif %}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model with a tokenizer and a template, as a user has it."""
    tokenizer, place = byte_level(), tmp_path_factory.mktemp("model")
    tokenizer.chat_template = TEMPLATE
    torch.manual_seed(3)
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, eos_token_id=0, bos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4)
    model.save_pretrained(place)
    tokenizer.save_pretrained(place)
    return place


@pytest.fixture(scope="module")
def llm(folder):
    return gs.serving.LLM(folder, max_requests=3)


def test_texts_are_the_decoded_tokens(llm):
    prompts = ["the cat", "naïve café", [5, 6, 7], "日本"]
    found = llm.generate(prompts, gs.serving.Sampling(max_tokens=12, logprobs=2))
    for prompt, each in zip(prompts, found, strict=True):
        assert each.text == llm.tokenizer.decode(each.tokens, skip_special_tokens=True)
        assert each.prompt_tokens == len(llm.encode(prompt)) and len(each.choices) == len(each.tokens)
        alone = llm.generate(prompt, gs.serving.Sampling(max_tokens=12))[0]
        assert (alone.tokens, alone.text, alone.choices) == (each.tokens, each.text, [])
        assert "".join(llm.stream(prompt, gs.serving.Sampling(max_tokens=12))) == each.text
    assert not llm.engine.busy


def test_each_request_has_its_own_sampling(llm):
    how = [gs.serving.Sampling(max_tokens=9, temperature=2.0, seed=seed) for seed in (1, 2, 1)]
    one, other, same = llm.generate(["the cat"] * 3, how)
    assert one.tokens == same.tokens != other.tokens
    assert llm.generate("the cat", how[0])[0].tokens == one.tokens


def test_a_stop_string_is_cut_out_and_ends_the_request(llm):
    whole = llm.generate("the cat", gs.serving.Sampling(max_tokens=20, ignore_eos=True))[0]
    stop = whole.text[6:9]
    found = llm.generate("the cat", gs.serving.Sampling(max_tokens=20, ignore_eos=True, stop=stop))[0]
    assert found.text == whole.text[: whole.text.index(stop)] and found.finished == "stop"
    assert len(found.tokens) < 20
    assert "".join(llm.stream("the cat", gs.serving.Sampling(max_tokens=20, ignore_eos=True, stop=stop))) == found.text


def test_leaving_a_stream_gives_its_pages_back(llm):
    for _ in llm.stream("the cat", gs.serving.Sampling(max_tokens=50, ignore_eos=True)):
        break
    assert not llm.engine.busy
    assert all(pages.free == pages.count for pages in llm.engine.store.pages.values())


ASKED = {
    "the cat": gs.serving.Sampling(max_tokens=30),
    "naïve café": gs.serving.Sampling(max_tokens=9, temperature=2.0, seed=1),
    "日本": gs.serving.Sampling(max_tokens=40, stop=("e",)),
    "a": gs.serving.Sampling(max_tokens=1),
}


def test_one_engine_is_asked_by_several_readers(llm):
    """In turns, and one inside another: who steps takes the others' requests along, and none misses a token."""
    alone = {prompt: llm.generate(prompt, how)[0] for prompt, how in ASKED.items()}
    readers = {prompt: llm.stream(prompt, how) for prompt, how in ASKED.items()}
    texts = dict.fromkeys(ASKED, "")
    while readers:
        for prompt in list(readers):
            piece = next(readers[prompt], None)
            if piece is None:
                del readers[prompt]
            else:
                texts[prompt] += piece
    assert texts == {prompt: each.text for prompt, each in alone.items()}
    outer = llm.stream("the cat", ASKED["the cat"])
    first = next(outer)
    assert llm.generate("日本", ASKED["日本"])[0] == alone["日本"]
    assert first + "".join(outer) == alone["the cat"].text
    assert not llm.engine.busy


def test_one_engine_is_asked_by_several_threads(llm):
    prompts = [*ASKED] * 4
    alone = {prompt: llm.generate(prompt, how)[0] for prompt, how in ASKED.items()}
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda prompt: llm.generate(prompt, ASKED[prompt])[0], prompts))
    assert found == [alone[prompt] for prompt in prompts]
    assert not llm.engine.busy


def test_several_engines_have_one_model(llm):
    """Each makes the model attend over its own pages for a pass: nobody else is in the model then."""
    model = copy.deepcopy(llm.engine.model)
    model.set_attn_implementation("sdpa")
    engines = [gs.serving.LLM(model, tokenizer=llm.tokenizer) for _ in range(4)] * 3
    alone = llm.generate("the cat", ASKED["the cat"])[0]
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda each: each.generate("the cat", ASKED["the cat"])[0], engines))
    assert found == [alone] * len(found)
    assert model.config._attn_implementation == "sdpa"


def test_one_wrong_prompt_stops_before_anything_runs(llm):
    for prompts, said in (
        (["the", 3], "prompts[1]: prompt must be a text"),
        (["the", []], "prompts[1]: prompt must have at least one token"),
        (["the", [9999]], "prompts[1]"),
        (["the", "cat " * 600], "prompts[1]: prompt has"),
    ):
        with pytest.raises((TypeError, ValueError)) as error:
            llm.generate(prompts)
        assert said in str(error.value)
        assert not llm.engine.busy
    with pytest.raises(ValueError, match="sampling has 1 entries for 2 prompts"):
        llm.generate(["a", "b"], [gs.serving.Sampling()])


def test_a_model_without_a_tokenizer_takes_tokens(llm):
    bare = gs.serving.LLM(llm.engine.model)
    assert bare.generate([[5, 6]], gs.serving.Sampling(max_tokens=3))[0].text == ""
    with pytest.raises(ValueError, match="no tokenizer; give tokens"):
        bare.generate(["the cat"])
    with pytest.raises(ValueError, match="no chat template"):
        bare.chat([{"role": "user", "content": "the cat"}])


FAULTY_TEMPLATES = [
    ("{{ raise_exception('roles must alternate') }}", "refuses the messages: roles must alternate"),
    ("{% for m in messages %}", "fails, line 1 (TemplateSyntaxError): Unexpected end of template"),
    ("{{ messages.foo.bar }}", "fails (UndefinedError): 'list object' has no attribute 'foo'"),
    ("{{ 1 / 0 }}", "fails (ZeroDivisionError): division by zero"),
    ("{{ 1 + 'a' }}", "fails (TypeError): unsupported operand"),
]


@pytest.mark.parametrize(("template", "said"), FAULTY_TEMPLATES)
def test_a_template_that_fails_is_named_with_its_own_words(folder, llm, monkeypatch, capsys, template, said):
    monkeypatch.setattr(llm.tokenizer, "chat_template", template)
    with pytest.raises(ValueError, match=re.escape(f"the model's chat template {said}")):
        llm.chat([{"role": "user", "content": "the cat"}])
    monkeypatch.setattr("gossamer.cli.generate.language_model", lambda *_, **settings: llm)
    assert main(["generate", str(folder), "--prompt", "the cat"]) == 2
    out, error = capsys.readouterr()
    assert said in error and error.count("\n") == 1 and out == ""


def test_the_command_answers_and_says_what_it_read(folder, tmp_path, capsys):
    (tmp_path / "book.txt").write_text("the cat sat on the mat. " * 12)
    more = ["--max-tokens", "5", "--token-budget", "192", "--static", "0.5", "--sink", "16", "--local", "64"]
    for text in (["--prompt-file", str(tmp_path / "book.txt")], ["--prompt", "the cat"]):
        assert main(["generate", str(folder), *text, *more]) == 0
        out, said = capsys.readouterr()
        llm = gs.serving.LLM(folder, sparsity=gs.serving.Sparsity(static=0.5, sink=16, local=64, token_budget=192))
        content = (tmp_path / "book.txt").read_text() if "file" in text[0] else "the cat"
        expected = llm.generate([llm.chat([{"role": "user", "content": content}])], gs.serving.Sampling(max_tokens=5))
        assert out == expected[0].text + "\n"
        assert "tokens read in" in said and "prefill read" in said and "decoding read" in said
    assert main(["generate", str(folder), "--prompt", "the cat", "--raw", "--max-tokens", "5"]) == 0
    assert capsys.readouterr().out == llm.generate("the cat", gs.serving.Sampling(max_tokens=5))[0].text + "\n"


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ([], "there is no text: give --prompt, --prompt-file or both"),
        (["--prompt", "  "], "the text is empty"),
        (["--prompt-file", "none.txt"], "none.txt"),
        (["--prompt-file", "bytes.bin"], "bytes.bin is not a text in UTF-8"),
        (["--prompt", "a", "--token-budget", "100"], "token_budget must be a multiple of the page"),
        (["--prompt", "a", "--memory", "lots"], "--memory must be a size like 800M or 2G, got 'lots'"),
        (["--prompt", "a", "--memory", "1k"], "memory of 1,024 bytes holds the keys of 0 tokens"),
        (["--prompt", "a", "--pattern", "none.tsv", "--static", "0.5"], "none.tsv"),
        (["--prompt", "a", "--threads", "0"], "--threads must be at least 1, got 0"),
        (["--prompt", "cat " * 500], "expected at most 512"),
        (["--prompt", "a", "--temperature", "nan"], "temperature must be"),
    ],
)
def test_bad_flags_end_in_one_line(folder, tmp_path, monkeypatch, capsys, flags, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bytes.bin").write_bytes(b"\xff\xfe\x00")
    assert main(["generate", str(folder), *flags]) == 2
    out, error = capsys.readouterr()
    assert said in error and error.count("\n") == 1 and out == ""


def test_a_reader_that_goes_away_ends_it(folder, tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    program = f"import os\nos.dup2(os.open({str(pipe)!r}, os.O_WRONLY), 1)\n" + CLI
    process = Forked(["generate", str(folder), "--prompt", "the cat", "--max-tokens", "400"], program)
    with pipe.open("rb", buffering=0) as reader:
        assert reader.read(1)
    code, _, said = process.end()
    assert "Traceback" not in said and code == 128 + signal.SIGPIPE


def test_smollm2_answers_about_a_text(smollm2, tmp_path, capsys):
    """The real thing: a fact in the middle of a text, found by pages that the model's queries choose."""
    import textwrap
    from pathlib import Path

    source = Path(textwrap.__file__).read_text()
    (tmp_path / "text.txt").write_text(source[:800] + "\n\nThe secret word is 'marmalade'.\n\n" + source[800:1600])
    flags = ["--prompt-file", str(tmp_path / "text.txt"), "--prompt", "Question: What is the secret word?"]
    assert main(["generate", str(smollm2), *flags, "--max-tokens", "12", "--token-budget", "320"]) == 0
    out, said = capsys.readouterr()
    assert "marmalade" in out and "pages were chosen" in said


@pytest.mark.slow
def test_smollm2_has_the_tokens_of_transformers(smollm2):
    """256 greedy tokens after a long prompt, in dense mode."""
    loaded = gs.serving.load(smollm2)
    prompt = loaded.tokenizer("def factorial(n):\n    " * 40)["input_ids"]
    expected = loaded.model.generate(torch.tensor([prompt]), max_new_tokens=256, do_sample=False)[0, len(prompt) :]
    llm = gs.serving.LLM(loaded.model, max_requests=1, chunk=100)
    found = llm.generate([prompt], gs.serving.Sampling(max_tokens=256))[0]
    assert found.tokens == expected.tolist()
