"""Clients that leave, that do not read, and engines that fail: pages are free, and nobody else notices."""

from __future__ import annotations

import asyncio
import socket
import threading

import pytest
from served import NAME, Served, wait_for
from starlette.requests import ClientDisconnect

import gossamer as gs
from gossamer.server.answer import Events
from gossamer.server.errors import ApiError
from gossamer.server.generation import Text
from gossamer.server.loop import EngineLoop

pytestmark = pytest.mark.filterwarnings("ignore")
PATHS = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "the cat"}], "max_completion_tokens": 1800},
    "/v1/completions": {"prompt": ["the cat", "the mat"], "n": 2, "max_tokens": 1800},
}
RESPONSES = {"input": "the cat", "max_output_tokens": 1800}


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_frees_its_pages(server, monkeypatch, stream):
    """Streamed or not, long before its text is whole; some read nothing, some a part."""
    ended: list[str] = []
    monkeypatch.setattr(server.state.loop, "ended", lambda generation, reason: ended.append(reason))
    for path, fields in {**PATHS, "/v1/responses": RESPONSES}.items():
        for reads in (0, 300) if stream else (0,):
            connection = server.begin(path, {"model": NAME, "stream": stream, "ignore_eos": True, **fields})
            wait_for(lambda: server.state.llm.engine.running)
            if reads:
                assert connection.recv(reads)
            connection.close()
            assert server.pages_in_use() == 0
            assert ended == ["abort"] * (4 if path == "/v1/completions" else 1)
            ended.clear()
    assert server.complete().status == 200


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_before_its_text_begins(server, monkeypatch, stream):
    """While its prompt is encoded: the answer never starts, so nothing in it can end the text."""
    ended: list[str] = []
    monkeypatch.setattr(server.state.loop, "ended", lambda generation, reason: ended.append(reason))
    wait_for(lambda: not server.connections)
    for path, fields in PATHS.items():
        with server.state.encoding:
            connection = server.begin(path, {"model": NAME, "stream": stream, "ignore_eos": True, **fields})
            wait_for(lambda: server.connections == 1)
            connection.close()
            wait_for(lambda: not server.connections)
        wait_for(lambda: ended)
        assert server.pages_in_use() == 0 and set(ended) == {"abort"}
        ended.clear()


def test_a_client_that_does_not_read_is_ended(folder):
    with Served(folder, unread=32, llm={"max_length": 2048}) as server:
        # Its buffers, here and in the kernel, take what they take: events are made large by log-probabilities.
        body = {"model": NAME, "prompt": "the cat", "max_tokens": 2000, "logprobs": 20, "ignore_eos": True, "n": 4,
                "stream": True}  # fmt: skip
        with server.begin("/v1/completions", body, receive=2048) as connection:
            wait_for(lambda: server.state.loop.open)
            open_now = list(server.state.loop.open)
            assert server.pages_in_use() == 0  # without one byte read
            assert any(each.tokens < 2000 for each in open_now)
            connection.settimeout(120)
            said = b""
            while b'"code":"timeout"' not in said and (more := connection.recv(1 << 16)):  # or to the end
                said = said[-2000:] + more
            assert b'"code":"timeout"' in said
        assert server.complete().status == 200


def test_a_request_that_takes_too_long_is_ended(folder):
    with Served(folder, seconds=2.0) as server:  # of the tests' clock, which moves with each look at it
        for stream in (False, True):
            reply = server.complete(max_tokens=2000, ignore_eos=True, stream=stream)
            error = reply.events[-1]["error"] if stream else reply.error
            assert error["code"] == "timeout" and "took more than 2.0 seconds" in error["message"]
            assert reply.status == (200 if stream else 408)
        assert server.pages_in_use() == 0


def fail_at(server, monkeypatch, at: int) -> None:
    """The engine's pass number `at` from now fails in the middle of the model."""
    engine, count = server.state.llm.engine, iter(range(10**9))
    forward = engine.model.model.layers[1].forward

    def failing(*args, **kwargs):
        if next(count) == at:
            raise RuntimeError("injected")
        return forward(*args, **kwargs)

    monkeypatch.setattr(engine.model.model.layers[1], "forward", failing)


@pytest.mark.parametrize("at", [0, 3])
def test_a_pass_that_fails_ends_its_requests_and_no_others(server, monkeypatch, at):
    fail_at(server, monkeypatch, at)
    ended: list[str] = []
    monkeypatch.setattr(server.state.loop, "ended", lambda generation, reason: ended.append(reason))
    replies = [server.complete(max_tokens=20, ignore_eos=True, n=3, stream=stream) for stream in (False, True)]
    assert ended == ["error"] * 3 + ["length"] * 3
    assert replies[0].status == 500 and replies[0].error["code"] == "engine_error"
    assert "injected" not in replies[0].error["message"]
    assert replies[1].status == 200 and replies[1].events[-1] == "[DONE]"
    fail_at(server, monkeypatch, at)
    assert server.complete(max_tokens=20, ignore_eos=True, stream=True).events[-1]["error"]["type"] == "server_error"
    assert server.pages_in_use() == 0 and server.ask("/health").status == 200
    fail_at(server, monkeypatch, at)
    events = server.ask("/v1/responses", {"model": NAME, "input": "x", "stream": True, "max_output_tokens": 20}).events
    assert events[-1]["type"] == "response.failed" and events[-1]["response"]["status"] == "failed"


def test_a_text_that_cannot_be_continued_ends_alone(server, monkeypatch):
    """A tokenizer or a grammar that fails at one text, while others are made."""
    from gossamer.server.grammar import Following
    from gossamer.serving.text import TextStream

    add, narrow, failed = TextStream.add, Following.narrow, []

    def adding(self, token):
        return 1 / 0 if self._stops._stops == ("marked",) else add(self, token)

    def narrowing(self, logits):
        if failed:
            return narrow(self, logits)
        failed.append(self)
        return self._fail(logits, "no way on")

    monkeypatch.setattr(TextStream, "add", adding)
    monkeypatch.setattr(Following, "narrow", narrowing)
    with server.begin("/v1/completions", {"model": NAME, "prompt": "the cat", "max_tokens": 300, "ignore_eos": True,
                                          "temperature": 0}) as other:  # fmt: skip
        wait_for(lambda: server.state.llm.engine.running)
        reply = server.complete(stop="marked")
        assert reply.status == 500 and reply.error["code"] == "text_error"
        reply = server.chat(response_format={"type": "json_object"})
        assert reply.status == 500 and reply.error["code"] == "schema_error"
        assert other.recv(12, socket.MSG_WAITALL) == b"HTTP/1.1 200" and failed


class Collected:
    """What becomes of generations, without HTTP."""

    def __init__(self) -> None:
        self.reasons: list[str] = []

    def __call__(self, generation, reason) -> None:
        self.reasons.append(reason)


@pytest.fixture
def loop(folder):
    ends = Collected()
    loop = EngineLoop(gs.serving.LLM(folder, max_requests=2), queue_size=8, ended=ends)
    loop.reasons = ends.reasons
    yield loop
    loop.close()


def free(loop: EngineLoop) -> bool:
    return all(pages.free == pages.count for pages in loop.llm.engine.store.pages.values())


TEXT = Text([5, 6, 7], gs.serving.Sampling(max_tokens=400, ignore_eos=True))


def test_who_reads_no_more_because_its_event_loop_is_gone_is_ended(loop):
    async def begin():
        return loop.submit([TEXT, TEXT])

    made = asyncio.run(begin())  # its event loop is closed now
    wait_for(lambda: not loop.open and not loop.llm.engine.busy)
    assert all(each.ended for each in made) and loop.reasons == ["abort"] * 2 and free(loop)


def test_all_texts_of_a_request_begin_or_none(loop):
    async def begin():
        with pytest.raises(ApiError, match="the prompt has no tokens"):
            loop.submit([TEXT, Text([], TEXT.sampling)])
        with pytest.raises(ApiError, match="9 texts"):
            loop.submit([TEXT] * 9)

    asyncio.run(begin())
    assert not loop.open and not loop.llm.engine.busy


def test_closed_while_texts_are_made_wait_and_come(loop):
    """Whoever runs, waits, or asks after the end is answered; nobody waits for ever."""

    async def everything():
        made = loop.submit([TEXT] * 3)
        first = await anext(aiter(made[0]))
        made[1].close()
        closing = threading.Thread(target=loop.close)
        closing.start()
        late = []
        try:
            late = loop.submit([TEXT])
        except ApiError as error:
            assert error.status == 503
        errors = []
        for each in [*made, *late]:
            try:
                async for piece in each:
                    assert piece.finished in (None, "abort")
            except ApiError as error:
                errors.append(error.status)
        closing.join()
        assert await loop.ask(lambda: 7) == 7  # answered here: the thread is gone
        with pytest.raises(ZeroDivisionError):
            await loop.ask(lambda: 1 // 0)
        return first, errors

    first, errors = asyncio.run(everything())
    assert first.choices and set(errors) == {503} and not loop.open and free(loop)
    assert len(loop.reasons) in (3, 4)


def test_texts_that_come_during_the_last_pass_are_refused(loop, monkeypatch):
    step, inside, hold = loop.llm.engine.step, threading.Event(), threading.Event()

    def stepping():
        inside.set()
        hold.wait(120)
        return step()

    async def status(generation) -> int:
        with pytest.raises(ApiError) as refused:
            async for piece in generation:
                assert piece.finished is None
        return refused.value.status

    async def everything():
        monkeypatch.setattr(loop.llm.engine, "step", stepping)
        made = loop.submit([TEXT])
        wait_for(inside.is_set)
        made += loop.submit([TEXT])
        closing = threading.Thread(target=loop.close)
        closing.start()
        wait_for(lambda: loop.draining)
        hold.set()
        assert [await asyncio.wait_for(status(each), 20) for each in made] == [503, 503]
        closing.join()

    asyncio.run(everything())
    assert not loop.open and free(loop) and loop.reasons == ["error"] * 2


def test_closing_a_text_while_the_engine_adds_it(loop, monkeypatch):
    """In every order of the two."""
    add = loop.llm.engine.add

    async def close_within():
        def adding(*args, **kwargs):
            job = add(*args, **kwargs)
            made[0].close()  # from the thread, in the middle of its command
            return job

        monkeypatch.setattr(loop.llm.engine, "add", adding)
        hold = threading.Event()
        loop.tell(lambda: hold.wait(120))
        made = loop.submit([TEXT])
        hold.set()
        pieces = [piece async for piece in made[0]]
        assert pieces[-1].finished == "abort"
        monkeypatch.setattr(loop.llm.engine, "add", add)
        made = loop.submit([TEXT])
        made[0].close()
        assert [piece async for piece in made[0]][-1].finished == "abort"
        made[0].close()

    asyncio.run(close_within())
    assert not loop.open and not loop.llm.engine.busy and free(loop) and loop.reasons == ["abort"] * 2


def test_pages_are_free_before_the_next_pass(loop, monkeypatch):
    """Of a text that is closed, even while others go on: at most the pass that runs is finished first."""
    step, held = loop.llm.engine.step, []

    def stepping():
        held.append(sum(pages.count - pages.free for pages in loop.llm.engine.store.pages.values()))
        return step()

    async def everything():
        made = loop.submit([TEXT, TEXT])
        await anext(aiter(made[1]))
        monkeypatch.setattr(loop.llm.engine, "step", stepping)
        made[0].close()
        asked = await loop.ask(lambda: len(held))
        wait_for(lambda: len(held) > asked)
        assert held[asked] == 1  # that of the other; both had one until then
        made[1].close()

    asyncio.run(everything())
    wait_for(lambda: free(loop))


def test_an_answer_that_cannot_even_begin_ends_its_texts(loop):
    """On servers that say so by an error when the first byte is sent."""

    async def nobody(message=None):
        raise OSError("the client has left")

    async def everything():
        made = loop.submit([TEXT])

        async def events():
            async for _ in made[0]:
                yield "data: {}"

        with pytest.raises(ClientDisconnect):
            await Events(events(), made)({"type": "http", "asgi": {"spec_version": "2.4"}}, nobody, nobody)
        assert (await asyncio.wait_for(loop.ask(lambda: made[0].ended), 20)) is True

    asyncio.run(everything())
    wait_for(lambda: free(loop))


def test_a_thread_that_ends_says_so(loop, monkeypatch):
    def dying():
        raise SystemExit("injected")

    async def everything():
        made = loop.submit([TEXT])
        loop.tell(dying)
        with pytest.raises(ApiError, match="the server was stopped"):
            async for _ in made[0]:
                pass
        wait_for(lambda: not loop.alive)
        with pytest.raises(ApiError) as refused:
            loop.submit([TEXT])
        assert refused.value.status == 503
        return await loop.drain(0.1)

    assert asyncio.run(everything()) and free(loop)
