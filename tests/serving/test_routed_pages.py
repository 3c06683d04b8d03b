"""Slots that hold only some tokens of each text: what they attend to, by hand in float64."""

from __future__ import annotations

import copy
import pickle
import random
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("transformers")

from gossamer.serving import Antidiagonal, SparseCache, Sparsity, hooks
from gossamer.serving.attending.attend import LayerAttention
from gossamer.serving.geometry import Geometry, LayerShape
from gossamer.serving.paging.store import Store, views
from gossamer.serving.tally import Tally

SLOTS, KEY_HEADS, GROUP, WIDTH = 4, 2, 2, 32
SHAPE = LayerShape(KEY_HEADS, GROUP, WIDTH, None)
GEOMETRY = Geometry((SHAPE,) * SLOTS, None)
MODULE = torch.nn.Module()


def role(text: int, position: int, slot: int) -> str:
    """What a token does in a slot: runs, has its keys known, has them put there in a later pass, or none of it.

    The first slot takes all, the second two of three, the third few, the last none of the first text.
    """
    if slot == 0:
        return "runs"
    if slot == 1:
        return ("known", "runs", "runs")[(position + text) % 3]
    if slot == 2:
        return ("runs", "late", "never", "never", "late")[(position * 7 + text) % 5]
    return "runs" if text > 0 and position % 2 == 0 else "never"


def states(text: int, position: int, slot: int) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value of a token, the same whenever it is asked."""
    generator = torch.Generator().manual_seed((text * 5000 + position) * SLOTS + slot)
    drawn = torch.randn(KEY_HEADS * GROUP + 2 * KEY_HEADS, WIDTH, generator=generator)
    return drawn.split([KEY_HEADS * GROUP, KEY_HEADS, KEY_HEADS])


def by_hand(query: Tensor, keys: Tensor, values: Tensor, sees: Tensor) -> Tensor:
    """Attention of query [heads, width] to the keys [n, key heads, width] that it sees, bool[n, key heads]."""
    k, v, mask = (x.repeat_interleave(GROUP, 1) for x in (keys.double(), values.double(), sees))
    scores = torch.einsum("hw,khw->hk", query.double(), k) * WIDTH**-0.5
    return torch.einsum("hk,khw->hw", scores.masked_fill(~mask.T, -torch.inf).softmax(1), v)


def attend(past: Any, tokens: list[tuple[Tensor, Tensor, Tensor]]) -> Tensor:
    """What a layer of transformers does with past_key_values, for the tokens that run it: [tokens, heads, width]."""
    q, k, v = (torch.stack(x, 1)[None] for x in zip(*tokens, strict=True))
    keys, values = past.update(k, v, 0)
    return hooks.attention(MODULE, q, keys, values, None)[0][0]


@dataclass
class Texts:
    """Rows of a cache, and by hand what each slot of them holds: positions, keys and values in their order."""

    cache: SparseCache
    rows: list[int]  # which text the tokens to come of each row are of
    streams: tuple[int, int] | None = None  # sink and window of the second key head
    held: list[list[list[tuple[int, Tensor, Tensor]]]] = field(default_factory=list)  # [slot][row]
    late: list[list[list[tuple[int, Tensor, Tensor]]]] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    real: Tensor = field(default_factory=lambda: torch.ones(0, 0))

    def __post_init__(self) -> None:
        self.lengths, self.real = [0] * len(self.rows), torch.ones(len(self.rows), 0, dtype=torch.bool)
        self.held, self.late = ([[[] for _ in self.rows] for _ in range(SLOTS)] for _ in range(2))

    def new(self, columns: Tensor) -> tuple[list[tuple[int, int]], Tensor | None]:
        """Rows and positions of the tokens of a pass with such columns, bool[rows, columns], and the whole mask."""
        self.real, counts = torch.cat([self.real, columns], 1), columns.sum(1).tolist()
        tokens = [(row, self.lengths[row] + at) for row, count in enumerate(counts) for at in range(count)]
        self.lengths = [length + count for length, count in zip(self.lengths, counts, strict=True)]
        return tokens, None if self.real.all() else self.real

    def step(self, columns: Tensor) -> None:
        """A pass in which tokens have their roles; every output of every slot is checked."""
        tokens, mask = self.new(columns)
        routed = self.cache.route(*columns.shape, mask, device="cpu", dtype=torch.float32)
        assert list(zip(routed.text.tolist(), routed.position.tolist(), strict=True)) == tokens
        places = torch.arange(columns.numel()) if routed.places is None else routed.places
        assert torch.equal(places, columns.flatten().nonzero()[:, 0])
        for slot in range(SLOTS):
            self._slot(routed, slot, tokens)

    def _slot(self, routed: Any, slot: int, tokens: list[tuple[int, int]]) -> None:
        roles = [role(self.rows[row], place, slot) for row, place in tokens]
        runs, known = ([at for at, each in enumerate(roles) if each == name] for name in ("runs", "known"))
        each = [states(self.rows[row], place, slot) for row, place in tokens]
        if runs:  # what came late is put there before those that look for it
            late = self.late[slot]
            if any(late):
                _, keys, values = zip(*(token for row in late for token in row), strict=True)
                text, position = zip(*((row, token[0]) for row, some in enumerate(late) for token in some), strict=True)
                routed.put(slot, torch.tensor(text), torch.tensor(position), torch.stack(keys), torch.stack(values))
            for row, some in zip(self.held[slot], late, strict=True):
                row.extend(some)
                some.clear()
            more = None
            if known:
                more = torch.tensor(known), *(torch.stack([each[at][i] for at in known]) for i in (1, 2))
            every = None if len(runs) == len(tokens) else torch.tensor(runs)
            found = dict(zip(runs, attend(routed.at(slot, every, more), [each[at] for at in runs]), strict=True))
            for at, (row, place) in enumerate(tokens):
                if roles[at] in ("runs", "known"):
                    self.held[slot][row].append((place, *each[at][1:]))
                if at in found:
                    self._check(self.held[slot][row], each[at][0], found[at])
        for at, (row, place) in enumerate(tokens):
            if roles[at] == "late" or (roles[at] == "known" and not runs):
                self.late[slot][row].append((place, *each[at][1:]))

    def whole(self, columns: Tensor) -> None:
        """A pass of the model itself, in which all tokens take all slots."""
        tokens, mask = self.new(columns)
        for slot in range(SLOTS):
            padded = torch.zeros(3, *columns.shape, KEY_HEADS * GROUP, WIDTH)
            for at, (row, place) in zip(columns.flatten().nonzero()[:, 0].tolist(), tokens, strict=True):
                for kind, state in enumerate(states(self.rows[row], place, slot)):
                    padded[kind].flatten(0, 1)[at, : len(state)] = state
            q, k, v = padded.transpose(2, 3)
            keys, values = self.cache.update(k[:, :KEY_HEADS], v[:, :KEY_HEADS], slot)
            out = hooks.attention(MODULE, q, keys, values, mask)[0][columns]
            for (row, place), one in zip(tokens, out, strict=True):
                query, key, value = states(self.rows[row], place, slot)
                self.held[slot][row].append((place, key, value))
                self._check(self.held[slot][row], query, one)

    def _check(self, held: list[tuple[int, Tensor, Tensor]], query: Tensor, out: Tensor) -> None:
        _, keys, values = zip(*held, strict=True)
        sees = torch.ones(len(held), KEY_HEADS, dtype=torch.bool)
        if self.streams is not None:
            sink, local = self.streams
            sees[:, 1] = (torch.arange(len(held)) < sink) | (torch.arange(len(held)) >= len(held) - local)
        expected = by_hand(query, torch.stack(keys), torch.stack(values), sees)
        torch.testing.assert_close(out.double(), expected, atol=2e-5, rtol=2e-5)

    def crop(self, count: int) -> None:
        try:
            self.cache.crop(-count)
        except ValueError as error:
            assert self.streams is not None and "what a window of 40 sees then is gone" in str(error)
            return self.check_kept()  # nothing was taken away
        self.real, self.lengths = self.real[:, :-count], [length - count for length in self.lengths]
        for of in (self.held, self.late):
            for slot in of:
                for row, length in enumerate(self.lengths):
                    slot[row] = [token for token in slot[row] if token[0] < length]

    def reorder(self, chosen: list[int]) -> None:
        """Rows as a beam search chooses them; those chosen twice go on differently."""
        self.cache.batch_select_indices(torch.tensor(chosen))
        self.rows = [self.rows[row] if row not in chosen[:at] else 10 + at for at, row in enumerate(chosen)]
        self.lengths, self.real = [self.lengths[row] for row in chosen], self.real[chosen]
        self.held, self.late = ([[list(slot[row]) for row in chosen] for slot in of] for of in (self.held, self.late))

    def check_kept(self) -> None:
        for row, request in enumerate(self.cache.rows):
            assert request.length == self.lengths[row]
            for slot in range(SLOTS) if request.kept else ():
                assert request.kept[slot].positions == [token[0] for token in self.held[slot][row]]


def cache_of(**sparsity: Any) -> SparseCache:
    return SparseCache(GEOMETRY, Sparsity(**sparsity))


def columns(*counts: int, left: bool = True) -> Tensor:
    """bool[rows, columns] with so many tokens in each row, and padding before or after them."""
    new = torch.arange(max(counts)) < torch.tensor(counts)[:, None]
    return new.flip(1) if left else new


@pytest.mark.parametrize("left", [True, False])
def test_each_slot_attends_to_what_it_holds(left):
    """Ragged texts with padding, in chunks, then tokens one by one; the third text begins late."""
    texts = Texts(cache_of(page=32), [0, 1, 2])
    for counts in ((150, 70, 0), (3, 1, 60), (1, 1, 1), (1, 1, 1), (0, 2, 65)):
        texts.step(columns(*counts, left=left))
    texts.check_kept()


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("streams", [None, (5, 40)])
def test_any_order_of_passes_crops_and_forks(seed, streams, caplog):
    """Routed passes, whole ones, prompts and single tokens, tokens taken back, rows that are copied and left."""
    draw = random.Random(seed)
    more = {} if streams is None else {"static": 0.5, "sink": streams[0], "local": streams[1]}
    texts = Texts(cache_of(page=32, **more), [0, 1, 2], streams)
    texts.step(columns(*(draw.randrange(40, 90) for _ in range(3))))
    for _ in range(12):
        act = draw.choice(["step", "step", "one", "one", "one", "whole", "crop", "reorder", "copy"])
        if act == "step":
            texts.step(columns(*(draw.randrange(1, 40) for _ in range(3))))
        elif act == "whole":
            texts.whole(torch.ones(3, draw.choice([1, 1, 33]), dtype=torch.bool))
        elif act == "crop":
            texts.whole(torch.ones(3, 4, dtype=torch.bool))
            texts.crop(draw.choice([1, 3, 4]))
        elif act == "reorder":
            texts.reorder([draw.randrange(3) for _ in range(3)])
        elif act == "copy":
            texts.cache = draw.choice([copy.deepcopy, lambda cache: pickle.loads(pickle.dumps(cache))])(texts.cache)
        else:
            texts.step(torch.ones(3, 1, dtype=torch.bool))
        texts.check_kept()
    texts.step(torch.ones(3, 1, dtype=torch.bool))
    store = texts.cache.pages
    for row in dict.fromkeys(texts.cache.rows):
        store.close(row)
    assert all(pages.free == pages.count for pages in store.pages.values())


@pytest.mark.parametrize("late", [False, True])
def test_copies_of_a_text_write_into_pages_of_their_own(late):
    """Slots that lag write into pages before the last, and keys that come late into pages that nobody foresaw."""
    texts = Texts(cache_of(page=32), [1, 1, 1])
    texts.step(columns(100, 100, 100))
    if late:  # the copies differ from here on, and slot 2 is given more keys than the pass has tokens
        texts.late[2] = [
            [(place, *states(row, place, 2)[1:]) for place in range(99) if role(1, place, 2) == "never"]
            for row in (20, 21, 22)
        ]
    texts.reorder([0, 0, 0])
    for row, some in enumerate(texts.late[2]) if late else ():
        texts.late[2][row] = [(place, key + row, value) for place, key, value in some]
    for _ in range(12):
        texts.step(torch.ones(3, 1, dtype=torch.bool))
    texts.check_kept()


SPARSITIES = {
    "pages": {"token_budget": 96, "interval": 3},
    "pages of each head": {"token_budget": 96, "select_per": "q_head", "stored": "int8"},
    "bounded": {"token_budget": 96, "max_error": 0.3},
    "streams and prompts": {"static": 0.5, "sink": 20, "local": 50, "prefill": Antidiagonal(0.5, beyond=64)},
}


@pytest.mark.parametrize("name", SPARSITIES)
def test_a_slot_is_a_text_of_its_own(name):
    """What is skipped within a slot, and what is counted, is what it is for a text of the slot's tokens alone."""
    cache = cache_of(page=32, **SPARSITIES[name])
    alone = Geometry((SHAPE,), None)
    parts = cache.sparsity.parts(alone)
    stored = cache.sparsity.stored_for(torch.float32)
    store = Store(alone, cache.sparsity, stored, parts, dict.fromkeys(views(parts), 200))
    tally, texts = Tally(), 2
    layers = [LayerAttention(store, 0, tally) for _ in range(SLOTS)]
    requests = [[store.open() for _ in range(texts)] for _ in range(SLOTS)]
    for counts in ((320, 256), (64, 33), *[(1, 1)] * 9):
        routed = cache.route(texts, max(counts), torch.cat([cache.real, columns(*counts)], 1) if cache.rows else
                             columns(*counts), device="cpu", dtype=torch.float32)  # fmt: skip
        tokens = list(zip(routed.text.tolist(), routed.position.tolist(), strict=True))
        for slot in range(SLOTS):
            takes = [at for at, (row, place) in enumerate(tokens) if role(row, place, slot) in ("runs", "known")]
            if not takes:
                continue
            own = [sum(tokens[at][0] == row for at in takes) for row in range(texts)]
            mine = [request for request, count in zip(requests[slot], own, strict=True) if count]
            step = store.extend(mine, [count for count in own if count], len(mine) if max(counts) == 1 else 0)
            each = [states(*tokens[at], slot) for at in takes]
            expected = layers[slot](*(torch.stack(x) for x in zip(*each, strict=True)), step)
            store.trim(mine)
            assert torch.equal(attend(routed.at(slot, torch.tensor(takes)), each), expected)
    assert cache.tally == tally
    assert tally.decode_read != tally.decode_keys


def test_pages_that_no_slot_sees_are_given_back():
    """The slot with the fewest tokens says what a window still sees; once it has moved on, so have the pages."""
    cache, taken = cache_of(page=32, static=1.0, sink=0, local=32), []
    for takes in (True, False, True):
        for _ in range(2):
            routed = cache.route(1, 320, device="cpu", dtype=torch.float32)
            for slot in range(SLOTS):
                if takes or slot != 2:
                    attend(routed.at(slot), [states(0, at, slot) for at in range(320)])
        cache.pages.trim(cache.rows)
        (pages,) = cache.pages.pages.values()
        taken.append(pages.count - pages.free)
    assert taken == [1, 21, 21]


def test_a_window_of_the_model_takes_all_tokens():
    shapes = SHAPE, LayerShape(KEY_HEADS, GROUP, WIDTH, 16)
    cache = SparseCache(Geometry(shapes, None), page=32)
    routed = cache.route(1, 40, device="cpu", dtype=torch.float32)
    tokens = [states(0, at, 1) for at in range(40)]
    with pytest.raises(ValueError, match="slot 1 has a window of 16 tokens by their positions, and lacks tokens befor"):
        attend(routed.at(1, torch.tensor([0, 1, 3])), [tokens[at] for at in (0, 1, 3)])
    attend(routed.at(1, torch.arange(30)), tokens[:30])  # the first ones: they lie where their positions say
    routed = cache.route(1, 1, device="cpu", dtype=torch.float32)
    with pytest.raises(ValueError, match="lacks tokens before 40"):
        attend(routed.at(1), tokens[:1])
    _, keys, values = (torch.stack(x) for x in zip(*tokens[30:], strict=True))
    routed.put(1, torch.zeros(10, dtype=torch.int64), torch.arange(30, 40), keys, values)
    query, key, value = states(0, 40, 1)
    (found,) = attend(routed.at(1), [(query, key, value)])
    _, keys, values = (torch.stack(x) for x in zip(*tokens[25:], (query, key, value), strict=True))
    torch.testing.assert_close(
        found.double(), by_hand(query, keys, values, torch.ones(16, 2, dtype=torch.bool)), atol=2e-5, rtol=2e-5
    )
    for _ in range(3):
        cache.route(1, 64, device="cpu", dtype=torch.float32)
    routed = cache.route(1, 1, device="cpu", dtype=torch.float32)
    late = torch.zeros(64, KEY_HEADS, WIDTH)
    with pytest.raises(ValueError, match="come too late for the window of 16 of slot 1"):
        routed.put(1, torch.zeros(64, dtype=torch.int64), torch.arange(41, 105), late, late)


def test_slots_of_several_hops_and_memory_of_texts():
    geometry = Geometry((SHAPE, LayerShape(KEY_HEADS, GROUP, WIDTH, 64)), 100).repeated(3)
    assert [shape.window for shape in geometry.layers] == [None, 64] * 3 and geometry.longest == 100
    sparsity = Sparsity(token_budget=192, dense_layers=(1,))
    assert [[part.chooses for part in parts] for parts in sparsity.parts(geometry)] == [[True], [False]] * 3
    cache = SparseCache(geometry, sparsity)
    routed = cache.route(2, 1, device="cpu", dtype=torch.float32)
    attend(routed.at(4, torch.tensor([0])), [states(0, 0, 0)])
    routed.memory[0]["kept"] = torch.tensor([1, 2])
    cache.batch_repeat_interleave(2)
    memories = [row.memory for row in cache.rows]
    memories[1]["kept"][0] = 7
    assert [each.get("kept", torch.tensor([])).tolist() for each in memories] == [[1, 2], [7, 2], [], []]
    cache.pages.close(cache.rows[0])
    assert not memories[0]
    with pytest.raises(ValueError, match="hops must be an integer of at least 1, got 0"):
        geometry.repeated(0)


def test_what_does_not_fit_a_pass_is_refused():
    cache = cache_of(page=32)
    with pytest.raises(ValueError, match=r"mask must be \[2, 5\], 1 for tokens, 0 for padding, got \[2, 4\]"):
        cache.route(2, 5, torch.ones(2, 4), device="cpu", dtype=torch.float32)
    routed = cache.route(2, 5, device="cpu", dtype=torch.float32)
    tokens = [states(0, at, 0) for at in range(10)]
    for rows, said in (
        (torch.tensor([1, 0]), "rows must be ascending places from 0 to 9, got"),
        (torch.tensor([3, 10]), "rows must be ascending places from 0 to 9, got"),
        (
            torch.ones(10, dtype=torch.bool),
            r"rows must be int64\[n\], places among the 10 tokens, got torch.bool\[10\]",
        ),
    ):
        with pytest.raises(ValueError, match=said):
            routed.at(0, rows)
    with pytest.raises(ValueError, match="slot must be from 0 to 3, got 4"):
        routed.at(4)
    with pytest.raises(ValueError, match=r"takes one row of 2 tokens in this call, got keys \[1, 2, 3, 32\]"):
        attend(routed.at(0, torch.tensor([0, 1])), tokens[:3])
    key = torch.zeros(1, KEY_HEADS, WIDTH)
    with pytest.raises(ValueError, match=r"known must be tokens that do not run slot 0, got \[1\] of both"):
        routed.at(0, torch.tensor([0, 1]), (torch.tensor([1]), key, key))
    with pytest.raises(ValueError, match=r"keys of slot 0 must be \[1, 2, 32\] without gradient, got \[1, 2, 16\]"):
        routed.at(0, torch.tensor([0]), (torch.tensor([1]), key[..., :16], key))
    attend(routed.at(0, torch.tensor([0, 3])), [tokens[0], tokens[3]])
    with pytest.raises(ValueError, match="given the token at 2 of a text, and holds keys up to 3: each slot takes the"):
        attend(routed.at(0, torch.tensor([2])), [tokens[2]])
    routed = cache.route(2, 1, device="cpu", dtype=torch.float32)
    for text, position, said in (
        ([0], [3], r"slot 0 holds the keys of tokens \[3\] already"),
        ([1], [6], r"position must be ascending places among the 6 tokens of a text, got \[6\]"),
        ([0, 0], [2, 1], r"position must be ascending places among the 6 tokens of a text, got \[2, 1\]"),
        ([2], [1], r"text must be ascending numbers of 2 texts, as many as positions, 1; got \[2\]"),
        ([1, 0], [1, 1], r"text must be ascending numbers of 2 texts, as many as positions, 2; got \[1, 0\]"),
    ):
        some = key.expand(len(position), -1, -1)
        with pytest.raises(ValueError, match=said):
            routed.put(0, torch.tensor(text), torch.tensor(position), some, some)
    routed.put(0, torch.tensor([0, 1]), torch.tensor([2, 5]), key.expand(2, -1, -1), key.expand(2, -1, -1))
    assert [row.kept[0].positions for row in cache.rows] == [[0, 3, 2], [5]]
    with pytest.raises(ValueError, match=r"slot 0 holds the keys of tokens \[3\] already"):
        routed.put(0, torch.tensor([0]), torch.tensor([3]), key, key)
    with pytest.raises(ValueError, match="cannot be cropped to 3 tokens: keys of an earlier token lie behind"):
        cache.crop(-3)
    assert [row.length for row in cache.rows] == [6, 6]  # nothing was taken away
