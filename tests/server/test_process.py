"""`gossamer serve` as a process: it ends what runs at a signal, and not at a second one; a port in use; bad flags."""

from __future__ import annotations

import http.client
import json
import signal
import socket
import subprocess
import sys

import pytest
from served import NAME, Apart, wait_for

from gossamer.cli.__main__ import main

pytestmark = pytest.mark.filterwarnings("ignore")
LONG = {"model": NAME, "prompt": "the cat", "max_tokens": 1500, "ignore_eos": True, "stream": True, "temperature": 0}


def test_a_signal_lets_those_that_run_finish(folder, capsys):
    with Apart(folder) as server:
        assert main(["serve", str(folder), "--port", str(server.port)]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and f"--port {server.port} cannot be used: Address already in use" in error
        answer = server.ask("/v1/completions", {**LONG, "max_tokens": 1000})
        assert answer.status == 200 and answer.read(200)
        server.signal(signal.SIGTERM)
        wait_for(lambda: server.ask("/ready").status == 503)
        late = server.ask("/v1/completions", {**LONG, "stream": False})
        assert late.status == 503 and late.headers["retry-after"] == "5"
        assert json.loads(late.read())["error"]["code"] == "draining"
        text = answer.read().decode()
        assert text.endswith("data: [DONE]\n\n") and text.count("data: ") > 300
        code, _, said = server.processes[0].end()
        assert code == 0 and said.count("\n") == 1  # its address, and nothing else
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", server.port))


@pytest.mark.slow
def test_a_second_signal_does_not_wait(folder):
    with Apart(folder) as server:
        answer = server.ask("/v1/completions", LONG)
        assert answer.read(200)
        server.signal(signal.SIGINT)
        wait_for(lambda: server.ask("/ready").status == 503)
        server.signal(signal.SIGINT)
        assert server.processes[0].end()[0] == 0
        try:
            rest = answer.read()
        except http.client.IncompleteRead as cut:
            rest = cut.partial
        assert b"[DONE]" not in rest


@pytest.mark.slow
def test_who_does_not_read_does_not_keep_it_up(folder):
    """Its text is whole, its connection is open: it is cut off when all others are done."""
    with Apart(folder, "--drain", "5") as server, socket.socket() as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        deaf.connect(("127.0.0.1", server.port))
        raw = json.dumps({**LONG, "logprobs": 20, "n": 8}).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(raw)}\r\n\r\n"
        deaf.sendall(head.encode() + raw)
        wait_for(lambda: b"num_requests_running{" in server.ask("/metrics").read())
        server.signal(signal.SIGTERM)
        assert server.processes[0].end()[0] == 0


@pytest.mark.slow
def test_a_server_that_was_killed_serves_again(folder):
    with Apart(folder) as server:
        answer = server.ask("/v1/completions", LONG)
        assert answer.read(100)
        server.signal(signal.SIGKILL)
        server.processes[0].process.join()
        with Apart(folder, port=server.port) as again:
            assert again.ask("/v1/completions", {**LONG, "max_tokens": 5}).status == 200


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--port", "70000"], "--port must be from 0 to 65535, got 70000"),
        (["--host", "0.0.0.0"], "--host 0.0.0.0 is reached by others: give --api-key, or set GOSSAMER_API_KEY"),
        (["--host", "203.0.113.7", "--api-key", "x"], "--host 203.0.113.7 --port 8000 cannot be used"),
        (["--port", "0", "--token-budget", "100"], "token_budget must be a multiple of the page"),
        (["--port", "0", "--max-model-len", "9999"], "max_length must be at most the model's 2048 tokens"),
        (["--port", "0", "--threads", "0"], "--threads must be at least 1, got 0"),
        (["--port", "0", "--queue", "0"], "queue must be at least 1, got 0"),
        (["--port", "0", "--drain", "-1"], "drain must be at least 0 seconds, got -1"),
        (["--port", "0", "--timeout", "0"], "timeout must be above 0 seconds, got 0"),
    ],
)
def test_bad_flags_end_in_one_line(folder, monkeypatch, capsys, flags, said):
    monkeypatch.delenv("GOSSAMER_API_KEY", raising=False)
    assert main(["serve", str(folder), *flags]) == 2
    out, error = capsys.readouterr()
    assert said in error and error.count("\n") == 1 and out == ""


def test_packages_that_are_not_there_are_named():
    """In a process that has imported none of them, so that nothing is taken for there."""
    packages = ["starlette", "uvicorn", "pydantic", "prometheus_client"]
    code = (
        "import sys\n"
        "from gossamer.cli.__main__ import main\n"
        f"for package in {packages}:\n"
        "    sys.modules[package] = None\n"
        "    assert main(['serve', 'x']) == 2\n"
        "    del sys.modules[package]\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    expected = [f"gossamer serve needs {package}: pip install" for package in packages]
    assert done.returncode == 0 and done.stderr.count("\n") == len(packages), done.stderr
    assert all(each in line for each, line in zip(expected, done.stderr.splitlines(), strict=True))
