"""Real processes that hold one model together say what one process does, on their share of the memory."""

from __future__ import annotations

import pickle
import socket
from typing import Any

import pytest
import torch
from forked import together
from ranks_worker import engine_of, rank_of, work
from serving_decoders import decoder, prompts

from gossamer.serving import Engine, Sparsity
from gossamer.serving.geometry import Geometry
from gossamer.serving.paging.store import bytes_of_page, most_pages

pytestmark = pytest.mark.filterwarnings("ignore")
FOUR = "llama, all key heads, llama3"
BOTH = Sparsity(token_budget=192, static=0.5, sink=64, local=64)
KNOWN: dict[str, Any] = {"family": FOUR, "aborted": [], "fails": []}


def scarce(sparsity: Sparsity, pages: int) -> int:
    """Bytes for so many dense pages beside the windows of three requests."""
    geometry = Geometry.of(decoder(FOUR).config)
    sizes = bytes_of_page(geometry, sparsity, "float32", sparsity.parts(geometry))
    return sum(
        size * (pages if view.window is None else 3 * most_pages(view, 320, 128, 64)) for view, size in sizes.items()
    )


@pytest.fixture(scope="module")
def cases() -> list[dict[str, Any]]:
    torch.manual_seed(0)
    (shared,) = prompts(130)
    alike = [shared + tail for tail in prompts(50, 40, 30, 20)]
    small = {"max_length": 320, "max_requests": 3, "chunk": 128}
    return [
        KNOWN | {"requests": prompts(5, 70, 1, 129), "settings": {"chunk": 48, "max_requests": 3}, "aborted": [1]},
        KNOWN | {"requests": prompts(250, 230, 260), "settings": small | {"sparsity": BOTH, "memory": scarce(BOTH, 8)}},
        KNOWN | {"requests": alike * 2, "settings": small | {"memory": scarce(Sparsity(), 12), "prefixes": 8}},
        KNOWN | {"requests": prompts(300, 280), "settings": {"sparsity": Sparsity(token_budget=192, max_error=0.5)}},
        {"family": "llama", "aborted": [], "fails": [2], "requests": prompts(300, 20), "settings": {"sparsity": BOTH}},
    ]  # fmt: skip


@pytest.fixture(scope="module")
def ranks(cases: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """What two ranks made of the cases, what each says where one cannot do its part, and what is said when one goes."""
    folder = tmp_path_factory.mktemp("ranks")
    (folder / "cases").write_bytes(pickle.dumps(cases))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    assert together(rank_of, port, folder) == [0, 7]
    found, second = (pickle.loads((folder / f"rank{rank}").read_bytes()) for rank in range(2))
    for one, other in zip(found[:-1], second, strict=False):
        one |= {name: (one[name], other[name]) for name in ("bytes", "weights")}
    return [*found, second[-1], (folder / "last").read_text()]


@pytest.mark.parametrize("at", range(5))
def test_two_ranks_say_what_one_process_says(at: int, cases: list[dict[str, Any]], ranks: list[Any]) -> None:
    case, found = cases[at], ranks[at]
    engine = engine_of(case)
    expected = work(engine, case)
    tally, other = expected.pop("tally"), found["tally"]
    assert other == pytest.approx(tally, rel=1e-3)
    most, heads = max(found["bytes"]), 3 * engine.store.geometry.layers[0].key_heads
    assert sum(found["bytes"]) == engine.store.nbytes and most <= engine.store.nbytes * (0.5 + 1 / heads)
    weights = sum(each.numel() for each in engine.model.parameters())
    divided = sum(each.numel() for layer in engine.model.model.layers for each in layer.parameters() if each.dim() > 1)
    assert found["weights"] == (weights - divided // 2,) * 2
    assert {name: found[name] for name in expected} == expected


def test_the_cases_have_what_they_are_for(cases: list[dict[str, Any]], ranks: list[Any]) -> None:
    assert (
        any(ranks[1]["restarts"])
        and all(ranks[4]["restarts"])
        and ranks[2]["hits"] > 0
        and ranks[3]["tally"]["heads_dense"] > 0
    )
    assert [len(each) for each in ranks[0]["tokens"]] == [24, 3, 24, 24]


def test_what_one_rank_cannot_do_is_said_by_all(ranks: list[Any]) -> None:
    first, second = ranks[-3:-1]
    assert first[0].startswith("ValueError: rank 1: memory of 1,000 bytes holds the keys of 0 tokens")
    assert second[0].startswith("ValueError: memory of 1,000 bytes holds the keys of 0 tokens")
    assert first[1].startswith("OSError: process 1 could not do its share: there is no model 'no/model'")
    assert second[1].startswith("FileNotFoundError: there is no model 'no/model'")


def test_a_rank_that_goes_ends_the_others(ranks: list[Any]) -> None:
    assert ranks[-1].startswith("rank 0 of 2 cannot go on, another has ended or a pass failed in its middle: ")
    assert ranks[-1].endswith("; all have to be started again")


def test_one_process_follows_nobody() -> None:
    engine = Engine(decoder("llama"))
    with pytest.raises(RuntimeError, match="the ranks of a group after the first"):
        engine.follow()
    engine.close()
