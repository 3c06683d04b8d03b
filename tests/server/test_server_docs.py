"""The page of the docs is true: its table is the code's, its programs run against a server."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
from served import NAME

from gossamer.cli.serve import Serve
from gossamer.server.openapi import fields

pytestmark = pytest.mark.filterwarnings("ignore")
PAGE = (Path(__file__).parents[2] / "docs" / "server.md").read_text()


def test_the_table_is_the_codes():
    mark = "<!-- fields: what gossamer.server.openapi.fields() says -->\n\n"
    assert PAGE.split(mark)[1] == fields().rstrip() + "\n"


def test_its_clients_run(server, capsys):
    pytest.importorskip("openai")
    source = "\n".join(re.findall(r"(?<!-->\n)^```py\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE))
    source = source.replace("http://127.0.0.1:8000", server.url).replace('"smollm2"', repr(NAME))
    exec(compile(source, "docs/server.md", "exec"), {})
    assert re.search(r"\n (\d+) tokens\n", capsys.readouterr().out)
    (said,) = re.findall(r"^```sh\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    _, url, _, header, _, body = shlex.split(said.replace("\\\n", ""))
    fields = json.loads(body) | {"model": NAME}
    name, _, value = header.partition(": ")
    reply = server.ask(url.removeprefix("http://127.0.0.1:8000"), fields, **{name.replace("-", "_"): value})
    assert reply.status == 200 and reply.text


def test_its_flags_and_metrics_are_there(server):
    flags = {f"--{name.replace('_', '-')}" for name in Serve.__dataclass_fields__}
    own = PAGE.split("## Measured")[0] + PAGE.split("## From Python")[1]  # the command that measures has its own
    torchruns = {"--standalone", "--nproc-per-node", "--shutdown-timeout"}
    assert set(re.findall(r"(--[a-z][a-z-]+)", own)) - torchruns <= flags
    told = server.ask("/metrics").raw.decode()
    section = PAGE.split("## Metrics")[1].split("##")[0].split("They are counted")[0]
    names = [each.removeprefix("vllm:") for each in re.findall(r"`([a-z0-9_:]+)`", section)]
    assert len(names) == 13
    assert not [name for name in names if name != "finished_reason" and f"vllm:{name}" not in told]
