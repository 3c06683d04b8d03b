"""The bundled model finds what it says it finds, at any length, and stops; `demo` is that model where no other is."""

from __future__ import annotations

import random

import pytest

from gossamer.bench.attention.passkey_task import write
from gossamer.cli.__main__ import main
from gossamer.serving import LLM, Sampling
from gossamer.serving.checkpoints import models

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def bundled() -> LLM:
    return LLM(models.BUNDLED)


@pytest.mark.parametrize(("length", "keys"), [(20, 2), (60, 3), (300, 8), (2000, 16)])
def test_it_finds_keys_and_stops(bundled: LLM, length: int, keys: int) -> None:
    draw = random.Random(length)
    texts = [write(draw, length, keys, animals=0.2 if length < 100 else 0.06, scattered=at % 2 > 0) for at in range(4)]
    asked = [draw.choice(list(text.keys)) for text in texts]
    prompts = [" ".join([*text.context, "ask", name]) for text, name in zip(texts, asked, strict=True)]
    made = bundled.generate(prompts, Sampling(max_tokens=8))
    assert [each.text.split() for each in made] == [t.keys[name] for t, name in zip(texts, asked, strict=True)]
    assert {each.finished for each in made} == {"stop"}


def test_a_conversation_is_its_text(bundled: LLM) -> None:
    """Words that it does not know are no hindrance."""
    asked = bundled.chat([{"role": "user", "content": "Hello key papa 11 12 13 . World ask papa"}])
    assert [each.text for each in bundled.generate([asked])] == ["11 12 13"]


def test_demo_is_the_bundled_model_where_no_other_is(tmp_path, monkeypatch, capsys, caplog) -> None:
    monkeypatch.setenv("GOSSAMER_CACHE", str(tmp_path))
    prompt = "key bravo 47 19 05 . the sky is blue ask bravo"
    assert main(["generate", "demo", "--prompt", prompt]) == 0
    assert capsys.readouterr().out == "47 19 05\n"
    assert f"finds pass keys, and can nothing else; ask it: {prompt}" in caplog.messages[0]
    assert LLM("demo").generate(prompt, Sampling(max_tokens=8))[0].text == "47 19 05"
    with pytest.raises(FileNotFoundError, match=r"a name: smollm2, demo; did you mean demo\?"):
        LLM("dmo")


def test_it_is_small() -> None:
    assert sum(each.stat().st_size for each in models.BUNDLED.iterdir()) < 500_000
