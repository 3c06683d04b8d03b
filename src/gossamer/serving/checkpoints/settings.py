"""A folder's config.json and generation_config.json: each fault names the file, and the field where it can be known."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from gossamer.extras import needed
from gossamer.nn.threshold.record import METHOD
from gossamer.serving.checkpoints.checkpoint import read_json, reading, words_of

CONFIG, GENERATION = "config.json", "generation_config.json"
_SHOWN = 100  # letters of a value in a message


def config_of(folder: Path) -> Any:
    """The configuration of transformers that config.json holds.

    Raises:
        ValueError: of a quantized or an unknown model, or a field that cannot be.
    """
    transformers: Any = needed("transformers", "language models need transformers", "serving")
    path = folder / CONFIG
    written = read_json(path)
    _check_written(path, written)
    if written.get("model_type") not in transformers.CONFIG_MAPPING:
        raise ValueError(f"{path} has the unknown model_type {written.get('model_type')!r}")
    with reading(path), _blaming(path, written):
        return transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def check_generation(folder: Path) -> None:
    """Refuse a generation_config.json that transformers would leave out without a word, with the tokens that end texts.

    Raises:
        ValueError: it cannot be read, or its end tokens are none.
    """
    path = folder / GENERATION
    if not path.exists():
        return
    end = read_json(path).get("eos_token_id")
    each = end if isinstance(end, list) else [end]
    if end is not None and any(isinstance(token, bool) or not isinstance(token, int) for token in each):
        raise _odd(path, "eos_token_id", end, "a number of a token, or a list of them")


@contextlib.contextmanager
def naming(config: Any, path: str) -> Iterator[None]:
    """A name that transformers does not know, which it raises as a bare KeyError, is said with the setting it is of."""
    try:
        yield
    except KeyError as error:
        wrong = error.args[0] if error.args else None
        fields = [name for name, value in config.to_dict().items() if isinstance(value, str) and value == wrong]
        if not fields:
            raise
        said = f"{' or '.join(fields)} of its {Path(path).name} is {wrong!r}, which transformers does not know"
        raise ValueError(said) from error


def _odd(path: Path, name: str, value: Any, expected: str) -> ValueError:
    return ValueError(f"{path}: {name} is {value!r:.{_SHOWN}}, expected {expected}")


def _check_written(path: Path, written: dict[str, Any]) -> None:
    """Fields of which transformers does not look at the type before it uses them."""
    kind, packing = written.get("model_type"), written.get("quantization_config")
    if kind is not None and not isinstance(kind, str):
        raise _odd(path, "model_type", kind, "the name of an architecture")
    if packing is not None and not isinstance(packing, dict):
        raise _odd(path, "quantization_config", packing, "an object")
    if (packing or {}).get("quant_method", METHOD) != METHOD:
        raise ValueError(f"{path.parent} is quantized; expected float weights, or a GGUF file")
    given = written.get("architectures")
    if given is not None and not (isinstance(given, list) and all(isinstance(name, str) for name in given)):
        raise _odd(path, "architectures", given, "a list of names")
    for name in ("dtype", "torch_dtype"):
        said = written.get(name)
        if said is None or isinstance(said, dict):  # one for each part of a model
            continue
        if not isinstance(said, str) or not isinstance(getattr(torch, said, None), torch.dtype):
            raise _odd(path, name, said, "a dtype of torch, such as float32")


@contextlib.contextmanager
def _blaming(path: Path, written: dict[str, Any]) -> Iterator[None]:
    """An error says which field it is of, if there is just one without which there is none."""
    try:
        yield
    except Exception as error:
        found = [name for name in written if name != "model_type" and _whole_without(name, written)]
        if len(found) != 1:
            raise
        said = words_of(error)
        raise ValueError(f"its {found[0]} is {written[found[0]]!r:.{_SHOWN}}: {said}") from error


def _whole_without(name: str, written: dict[str, Any]) -> bool:
    transformers: Any = needed("transformers", "language models need transformers", "serving")
    try:
        rest = {key: value for key, value in written.items() if key != name}
        transformers.CONFIG_MAPPING[written["model_type"]].from_dict(rest)
    except Exception:  # the fault that is looked into, of any kind: it is there without this field too
        return False
    return True
