"""Encoders over batches of real texts, whose lengths leave half of a batch padding.

Texts are the signatures and docstrings of functions of Python's own library, cut into tokens by MiniLM's tokenizer and
drawn at random into batches of 32 (words, where that package is not there). MiniLM has its real weights, BERT-base
random ones, in bfloat16 on a GPU. Beside the ways of every
section: texts sorted by length into parts of 8 before inductor sees them, tokens packed by hand, and torch's own
TransformerEncoder, which leaves padding out by nested tensors. A call of MiniLM is four batches of different sizes.
"""

from __future__ import annotations

import logging
import re
import zlib
from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention as attend
from torch.nn.utils.rnn import pad_sequence

from gossamer.bench.attention.decoders import transformers_here
from gossamer.bench.cells import Row, ratio, value
from gossamer.bench.compile import ways
from gossamer.bench.compile.ways import EAGER, FREEZING, INDUCTOR, OURS
from gossamer.bench.section import Section, Settings, Table
from gossamer.xmc.data.stdlib import stdlib
from gossamer.xmc.encoders.transformer import Transformer, find

SORTED, BY_HAND, NESTED = "inductor, sorted by length", "packed by hand", "nested tensors"
BATCH, PART = 32, 8
logger = logging.getLogger(__name__)
COUNT = {"MiniLM": 4, "BERT-base": 1}
"""Batches of a call: some seconds of eager's."""
LONGEST = (64, 128)
"""Tokens at which texts are cut."""

Batch = tuple[Tensor, Tensor]
"""Numbers of tokens and their mask, int64[texts, longest]."""


def minilm() -> Any:
    return Transformer("minilm").model.eval()


def bert_base() -> Any:
    import transformers

    torch.manual_seed(0)
    return transformers.BertModel(transformers.BertConfig()).eval()


def toy() -> Any:
    import transformers

    torch.manual_seed(0)
    config = transformers.BertConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64)
    return transformers.BertModel(config).eval()


def batches(longest: int, count: int, device: str = "cpu", *, size: int = BATCH) -> list[Batch]:
    """Batches of `size` texts drawn at random."""
    rows = numbered(texts(count * size), longest)
    found = []
    for at in range(0, len(rows), size):
        ids = pad_sequence(rows[at : at + size], batch_first=True)
        lengths = torch.tensor([len(row) for row in rows[at : at + size]])
        mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
        found.append((ids.to(device), mask.to(device)))
    return found


@cache
def documented() -> list[str]:
    """The docstrings of Python's library with their signatures; reading them takes some seconds."""
    return list(stdlib(documented=True).train.texts or ())


def texts(count: int) -> list[str]:
    """Some of them, drawn at random."""
    found = documented()
    chosen = torch.randperm(len(found), generator=torch.Generator().manual_seed(0))[:count].tolist()
    return [found[at] for at in chosen]


def numbered(said: list[str], longest: int) -> list[Tensor]:
    """Each text as numbers of tokens, cut."""
    if has_minilm():
        tokens = Transformer("minilm", max_length=longest).prepare(said)
        return list(tokens.ids.long().split(tokens.offsets.diff().tolist()))
    words = [re.findall(r"\w+|[^\w\s]", text)[:longest] for text in said]
    return [torch.tensor([zlib.crc32(word.encode()) % 30000 + 1 for word in row]) for row in words]


def has_minilm() -> bool:
    try:
        find("minilm")
    except ImportError as error:
        logger.warning("MiniLM's rows are left out: %s", error)
        return False
    return True


def sorted_parts(way: Callable[..., Any]) -> Callable[..., Tensor]:
    """The texts of a batch by length, a few at a time, each part cut to its longest."""

    def run(input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        counts = attention_mask.sum(1)
        order = counts.argsort()
        whole: Tensor | None = None
        for part in order.split(PART):
            long = int(counts[part].max())
            hidden = way(input_ids=input_ids[part, :long], attention_mask=attention_mask[part, :long]).last_hidden_state
            if whole is None:
                whole = hidden.new_zeros(*input_ids.shape, hidden.shape[2])
            whole[part, :long] = hidden
        assert whole is not None
        return whole

    return run


class ByHand(nn.Module):
    """A BERT over packed tokens, as one writes it when padding hurts: a loop over texts for attention."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        there = attention_mask.flatten().nonzero().squeeze(1)
        counts = attention_mask.sum(1).tolist()
        places = there % input_ids.shape[1]
        h = self.model.embeddings(input_ids=input_ids.flatten()[there][None], position_ids=places[None])[0]
        for layer in self.model.encoder.layer:
            own = layer.attention.self
            q, k, v = (f(h).view(len(h), own.num_attention_heads, -1) for f in (own.query, own.key, own.value))
            split = zip(q.split(counts), k.split(counts), v.split(counts), strict=True)
            texts = [attend(*(each.transpose(0, 1)[None] for each in text))[0].transpose(0, 1) for text in split]
            h = layer.attention.output(torch.cat(texts).flatten(1), h)
            h = layer.output(layer.intermediate(h), h)
        whole = h.new_zeros(attention_mask.numel(), h.shape[1])
        return whole.index_copy(0, there, h).view(*attention_mask.shape, -1)


def torchs_own(model: Any) -> Callable[..., Tensor]:
    """The same sizes in nn.TransformerEncoder, whose path of inference makes nested tensors of a batch."""
    c = model.config
    layer = nn.TransformerEncoderLayer(
        c.hidden_size, c.num_attention_heads, c.intermediate_size, activation="gelu", batch_first=True
    )
    encoder = nn.TransformerEncoder(layer, c.num_hidden_layers).to(model.device, model.dtype)
    encoder.eval().requires_grad_(False)

    def run(input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        found: Tensor = encoder(model.embeddings(input_ids), src_key_padding_mask=attention_mask == 0)
        return found

    return run


def over(way: Callable[..., Any], data: list[Batch], hidden: bool = True) -> list[Tensor]:
    """All batches; of each what stands at real tokens."""
    with torch.inference_mode():
        found = [way(input_ids=ids, attention_mask=mask) for ids, mask in data]
    return [each.last_hidden_state if hidden else each for each in found]


def _kept(found: list[Tensor], data: list[Batch]) -> list[Tensor]:
    return [each * mask[..., None] for each, (_, mask) in zip(found, data, strict=True)]


def row(name: str, model: Any, longest: int, settings: Settings) -> Row:
    data = batches(longest, COUNT.get(name, 2), settings.device)
    model.requires_grad_(False)
    if settings.device != "cpu":
        model.to(settings.device, torch.bfloat16)
    found = ways.compiled(model, names=(EAGER, INDUCTOR, FREEZING, OURS))
    calls: dict[str, ways.Call] = {each: partial(over, way, data) for each, way in found.items()}
    calls[SORTED] = partial(over, sorted_parts(found[INDUCTOR]), data, False)
    calls[BY_HAND] = partial(over, ByHand(model), data, False)
    calls[NESTED] = partial(over, torchs_own(model), data, False)
    same = {each: call for each, call in calls.items() if each != NESTED}  # other weights, other numbers
    there = sum(int(mask.sum()) for _, mask in data) / sum(mask.numel() for _, mask in data)
    differ = {each: apart(call(), calls[EAGER](), data) for each, call in same.items()}
    run = ways.measured(calls, settings, rivals=(SORTED, BY_HAND, NESTED), learn=2)
    return {
        "model": name, "longest": longest, "padding": 1 - there, "sizes": [list(ids.shape) for ids, _ in data],
        **run, "apart": differ,
    }  # fmt: skip


def apart(found: list[Tensor], expected: list[Tensor], data: list[Batch]) -> float:
    """The largest difference at real tokens, over the largest number."""
    pairs = zip(_kept(found, data), _kept(expected, data), strict=True)
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)


def rows(settings: Settings) -> Iterator[Row]:
    if not transformers_here():
        return
    models: dict[str, Callable[[], Any]] = {"BERT-base": bert_base}
    if settings.quick:
        models = {"toy": toy}
    elif has_minilm():
        models = {"MiniLM": minilm, **models}
    for name, make in models.items():
        for longest in (48,) if settings.quick else LONGEST:
            yield row(name, make(), longest, settings)


def limit(row: Row) -> str:
    """What leaving out all padding would give if time were tokens."""
    return f"{1 / (1 - row['padding']):.2f}x"


COLUMNS = (
    ("model", value("model")), ("cut at", value("longest")), ("padding", value("padding", ".0%")),
    ("fastest dense", ways.best_dense), (f"`{OURS}`", ratio(OURS)), ("1 / (1 - padding)", limit),
    (SORTED, ratio(SORTED)), (BY_HAND, ratio(BY_HAND)), (NESTED, ratio(NESTED)),
)  # fmt: skip

BRIEF = (COLUMNS[0], COLUMNS[1], COLUMNS[2], COLUMNS[4], COLUMNS[5])
SECTION = Section(rows, Table(ways.with_summary(COLUMNS)), {"brief": Table(BRIEF)})
