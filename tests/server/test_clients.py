"""Clients that others wrote, unchanged: OpenAI's own in two major releases, and a suite for compliance."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from served import NAME, Served

pytestmark = pytest.mark.filterwarnings("ignore")
CHECKS = Path(__file__).with_name("openai_checks.py")


def test_openais_client(server):
    openai = pytest.importorskip("openai")
    from openai_checks import CHECKS

    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        for check in CHECKS:
            check(client, NAME)
    assert server.pages_in_use() == 0


def test_openais_client_waits_as_it_is_told_and_comes_again(folder):
    openai = pytest.importorskip("openai")
    with Served(folder, queue_size=1) as server:
        body = {"model": NAME, "prompt": "the cat", "max_tokens": 1500, "ignore_eos": True, "stream": True}
        with server.begin("/v1/completions", body) as first:
            assert first.recv(100)
            client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
            with pytest.raises(openai.RateLimitError) as refused:
                client.completions.create(model=NAME, prompt="the cat")
            assert refused.value.response.headers["retry-after"] == "1"
        assert client.with_options(max_retries=5).completions.create(model=NAME, prompt="the cat").choices
        client.close()


@pytest.mark.slow
def test_openais_client_of_the_release_before(server, tmp_path):
    install = [sys.executable, "-m", "pip", "install", "-q", "--target", str(tmp_path), "openai>=2,<3"]
    if subprocess.run(install, capture_output=True, check=False).returncode:
        pytest.skip("openai 2 cannot be installed here")
    done = subprocess.run(
        [sys.executable, str(CHECKS), server.url, NAME], env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0 and done.stdout.startswith("2."), done.stdout + done.stderr
    assert server.pages_in_use() == 0


@pytest.mark.slow
@pytest.mark.parametrize("form", ["openai-chat", "open-responses"])
def test_llm_comply(smollm2, form):
    """Everything but pictures, which the model cannot see: they are refused by name."""
    if importlib.util.find_spec("llm_comply") is None:
        pytest.skip("llm-comply is not installed: pip install llm-comply==0.5.0")
    with Served(smollm2, llm={"max_length": 512, "max_requests": 8, "chunk": 256}) as server:
        main = "import sys; from llm_comply.cli import main; sys.exit(main())"
        flags = ["-u", f"{server.url}/v1", "-k", "none", "-m", NAME, "--format", form, "--json", "--timeout", "300"]
        flags += ["--ignore", "got 'incomplete'"]  # a drawn text that fills all the room there is
        done = subprocess.run(
            [sys.executable, "-c", main, *flags], capture_output=True, text=True, timeout=1500, check=False
        )
    results = json.loads(done.stdout)["results"]
    failed = {each["id"]: str(each["errors"]) for each in results if each["status"] == "failed"}
    (image,) = failed
    assert image.endswith("image-input") and "HTTP 400" in failed[image], done.stdout
    assert sum(each["status"] == "passed" for each in results) >= 7
