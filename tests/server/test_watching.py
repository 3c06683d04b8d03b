"""What the server says of itself while it works, and what it has counted afterwards."""

from __future__ import annotations

import re

import pytest
from served import NAME, Served, wait_for

import gossamer as gs

pytestmark = pytest.mark.filterwarnings("ignore")


def counted(server: Served) -> dict[str, float]:
    """The metrics by name; of histograms how many were observed."""
    text = server.ask("/metrics").raw.decode()
    found = re.findall(
        r'^vllm:(\w+)\{(?:finished_reason="(\w+)",)?model_name="tiny/model"\} (\S+)$', text, re.MULTILINE
    )
    return {name + (f" {reason}" if reason else ""): float(value) for name, reason, value in found}


def test_requests_are_counted_when_they_end(folder):
    with Served(folder) as server:
        before = counted(server)
        assert before["num_requests_running"] == before["kv_cache_usage_perc"] == before["prompt_tokens_total"] == 0
        prompt = "the cat sat on the mat. " * 12
        tokens = len(server.state.llm.encode(prompt))
        for _ in range(2):
            server.complete(prompt, ignore_eos=True, n=2)
        server.complete("the cat", logit_bias={"0": 100}, temperature=0)  # its end token
        with server.begin(
            "/v1/completions", {"model": NAME, "prompt": "the cat", "max_tokens": 1800, "ignore_eos": True}
        ):
            wait_for(lambda: counted(server)["num_requests_running"] == 1)
            assert counted(server)["kv_cache_usage_perc"] > 0
        wait_for(lambda: counted(server).get("request_success_total abort") == 1)
        assert server.chat(n=0).status == 400  # counts as nothing
        after = counted(server)
        assert after["request_success_total length"] == 4 and after["request_success_total stop"] == 1
        assert "request_success_total error" not in after
        assert after["prompt_tokens_total"] == 4 * tokens + 2 + 2
        assert after["generation_tokens_total"] >= 4 * 8 + 1
        for name in ("time_to_first_token", "e2e_request_latency", "request_queue_time"):
            assert after[f"{name}_seconds_count"] == 6, name
        assert after["inter_token_latency_seconds_count"] == after["generation_tokens_total"] - 6
        # The second request, and the second text of the first if it began late enough, found the prompt there.
        assert after["prefix_cache_hits"] >= 2 * (tokens - 1) and after["prefix_cache_queries"] >= 4 * tokens
        assert server.complete(prompt).json["usage"]["prompt_tokens_details"]["cached_tokens"] == tokens - 1


def test_the_page_sees_what_is_read(folder):
    with Served(folder, llm={"sparsity": gs.serving.Sparsity(token_budget=192)}) as server:
        idle = server.ask("/live").json
        assert (idle["running"], idle["waiting"], idle["requests"], idle["token_budget"]) == (0, 0, [], 192)
        assert idle["layers"] == [{"dense": 2, "streaming": 0}] * 2 and idle["pages"]["used"] == 0
        body = {"model": NAME, "prompt": "the cat sat on the mat. " * 60, "max_tokens": 1000, "ignore_eos": True}
        with server.begin("/v1/completions", body):
            wait_for(lambda: [each for each in server.ask("/live").json["requests"] if each["state"] == "writing"])
            wait_for(lambda: server.ask("/live").json["requests"][0]["layers"][0]["read"])
            (now,) = server.ask("/live").json["requests"]
            assert now["prompt"] == len(server.state.llm.encode(body["prompt"])) and now["tokens"] > 0
            assert [each["layer"] for each in now["layers"]] == [0, 1]
            for layer in now["layers"]:
                assert (
                    layer["pages"] > 3 and layer["read"][0] == 0
                )  # the first, the newest, and one for each of two heads
                assert 3 <= len(layer["read"]) <= 4 and max(layer["read"]) < layer["pages"]
        assert server.pages_in_use() == 0
