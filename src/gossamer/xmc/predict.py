"""What a trained encoder and head predict, batch by batch, and how good that is."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from gossamer.measure.memory import require_memory
from gossamer.xmc.data.csr import Csr
from gossamer.xmc.encoders import Encoder, Inputs
from gossamer.xmc.heads.base_head import Head
from gossamer.xmc.heads.features import features_of
from gossamer.xmc.metrics import Metrics, Scores

BATCH = 256
_BYTES = 12  # of a label that is found: its score and its number


@torch.no_grad()
def predictions(
    encoder: Encoder, head: Head, inputs: Inputs, k: int, *, exclude: Csr | None = None, batch_size: int = BATCH
) -> Iterator[tuple[Tensor, Tensor]]:
    """(scores float32[rows, k], ids int64[rows, k]) batch by batch, best first; the encoder's mode is put back.

    Raises:
        MemoryError: so many labels of a batch are more than what is free.
    """
    most = min(batch_size, inputs.shape[0])
    advice = f"Take a smaller k: the classifier knows {head.labels:,} labels"
    require_memory(f"k={k:,} labels of {most:,} examples", k, _BYTES * most, advice)
    training = encoder.training
    encoder.eval()
    try:
        for begin in range(0, inputs.shape[0], batch_size):
            rows = torch.arange(begin, min(begin + batch_size, inputs.shape[0]), device="cpu")
            left_out = None if exclude is None else exclude.take(rows)
            batch = inputs.take(rows)
            yield head.topk(encoder(batch), k, features=features_of(encoder, head, batch), exclude=left_out)
    finally:
        encoder.train(training)


def evaluate(
    encoder: Encoder,
    head: Head,
    inputs: Inputs,
    labels: Csr,
    *,
    k: int = 5,
    exclude: Csr | None = None,
    propensity: Tensor | None = None,
    frequency: Tensor | None = None,
    batch_size: int = BATCH,
    on_batch: Callable[[int], None] = lambda _: None,
) -> Scores:
    """P, nDCG and R at 1 to k, and PSP, PSnDCG and deciles where `propensity` and `frequency` are given.

    Args:
        exclude: [examples, labels], taken out before the best k are chosen.
        on_batch: called with the number of examples done.

    Raises:
        ValueError: no example, or sizes that do not belong together.
    """
    metrics = Metrics(head.labels, k, propensity=propensity, frequency=frequency)
    done = 0
    for scores, ids in predictions(encoder, head, inputs, k, exclude=exclude, batch_size=batch_size):
        metrics.add(scores, ids, labels.slice(done, done + len(ids)))
        done += len(ids)
        on_batch(done)
    return metrics.result()
