"""Pages: who has them, that none is lost, and what each request, window and copy needs."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from gossamer.serving.geometry import Geometry, LayerShape
from gossamer.serving.paging.pages import OutOfPages, Pages
from gossamer.serving.paging.store import Store, bytes_of_page, most_pages, views
from gossamer.serving.sparsity import Sparsity, View

GEOMETRY = Geometry((LayerShape(4, 2, 32, None), LayerShape(4, 2, 32, 100)), 4096)
PATTERN = {"static": 0.5, "sink": 40, "local": 90, "page": 32, "stretch": 16}


def store(sparsity: Sparsity, count: int) -> Store:
    parts = sparsity.parts(GEOMETRY)
    return Store(GEOMETRY, sparsity, sparsity.stored_for(torch.float32), parts, dict.fromkeys(views(parts), count))


@pytest.mark.parametrize("stored", ["float32", "bfloat16", "int8", "int4"])
def test_bytes_are_those_of_the_formula(stored):
    sparsity = Sparsity(stored=stored, token_budget=96, certify=True, **PATTERN)
    sizes = bytes_of_page(GEOMETRY, sparsity, stored, sparsity.parts(GEOMETRY))
    assert store(sparsity, 7).nbytes == 7 * sum(sizes.values())


@settings(max_examples=60)
@given(st.data())
def test_no_page_is_lost_or_had_twice(data):
    """Any sequence of additions, forks, crops and ends; owners are counted again from the tables."""
    memory = store(Sparsity(**PATTERN), 40)
    requests = [memory.open()]
    for _ in range(data.draw(st.integers(1, 25))):
        what = data.draw(st.sampled_from(["open", "extend", "fork", "close", "crop"]))
        if what == "open" or not requests:
            requests.append(memory.open())
            continue
        request = data.draw(st.sampled_from(requests))
        if what == "fork":
            requests.append(memory.fork(request))
        elif what == "close":
            memory.close(request)
            requests.remove(request)
        elif what == "crop":
            before = {view: list(table) for view, table in request.tables.items()}
            try:
                memory.crop(request, data.draw(st.integers(0, request.length)))
            except ValueError:
                assert request.tables == before
        else:
            before = {view: pages.free for view, pages in memory.pages.items()}
            try:
                memory.extend([request], [data.draw(st.integers(0, 200))])
            except OutOfPages:
                assert before == {view: pages.free for view, pages in memory.pages.items()}
            memory.trim([request])
        for view, pages in memory.pages.items():
            held = [page for each in requests for page in each.tables[view] if page >= 0]
            assert pages.count - pages.free == len(set(held))
            for page in set(held):
                assert held.count(page) == pages._owners[page]
            for each in requests:
                assert len(each.tables[view]) == -(-each.length // 32)
                first = view.first_seen(each.length) // 32
                assert -1 not in each.tables[view][first:] and -1 not in each.tables[view][: -(-view.sink // 32)]
    for request in requests:
        memory.close(request)
    assert all(pages.free == pages.count for pages in memory.pages.values())


@settings(max_examples=60)
@given(st.integers(1, 3000), st.integers(1, 300), st.integers(0, 200), st.integers(1, 300))
def test_a_window_needs_as_many_pages_as_it_says(tokens, chunk, sink, window):
    """The pages of a request at any moment stay within `most_pages`, however long it gets."""
    sparsity = Sparsity(static=1.0, sink=sink, local=window, page=32)
    memory = store(sparsity, 400)
    request, view = memory.open(), View(window, sink)
    most = most_pages(view, tokens, chunk, 32)
    while request.length < tokens:
        memory.extend([request], [min(chunk, tokens - request.length)])
        assert sum(page >= 0 for page in request.tables[view]) <= most
        memory.trim([request])


def test_a_shared_page_is_copied_before_it_is_written():
    memory = store(Sparsity(page=32), 10)
    first = memory.open()
    memory.extend([first], [40])
    view = View(None, 0)
    pool = memory.pools[0][0]
    pool.keys.fill_(1.0)
    other = memory.fork(first)
    assert memory.needed(other, 1)[view] == 1 and memory.needed(other, 0)[view] == 0
    memory.extend([other], [1])
    assert other.tables[view][0] == first.tables[view][0] and other.tables[view][1] != first.tables[view][1]
    assert float(pool.keys[other.tables[view][1]].min()) == 1.0
    assert memory.needed(first, 1)[view] == 0  # alone again


def test_errors_of_owners():
    pages = Pages(2)
    taken = pages.take(2)
    with pytest.raises(OutOfPages, match="1 pages are needed and 0 of 2 are free"):
        pages.take(1)
    with pytest.raises(ValueError, match="page 1 of 2 is not owned"):
        pages.release([1, 1])
    pages.release(taken)
    with pytest.raises(ValueError, match="not owned"):
        pages.release([0])
    memory = store(Sparsity(), 4)
    request = memory.open()
    memory.close(request)
    with pytest.raises(ValueError, match="not open"):
        memory.close(request)
    with pytest.raises(ValueError, match="decode one token each"):
        memory.extend([memory.open()], [2], decoding=1)
