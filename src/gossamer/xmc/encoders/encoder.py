"""What an encoder is: it turns texts or features into one vector an example, and may pass features on beside it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar, Protocol

from torch import Tensor, nn
from torch.optim import Optimizer

from gossamer import files
from gossamer.extras import needed
from gossamer.xmc.data.csr import Csr

WEIGHTS = "weights.safetensors"


class Inputs(Protocol):
    """Examples as an encoder reads them: prepared once, taken in batches. `Csr` is one."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(examples, ...)."""

    def take(self, rows: Tensor) -> Inputs:
        """The examples numbered by int64[n], in that order."""


class Encoder(nn.Module):
    """Base of the encoders. `forward(inputs)` gives float32[examples, width]; the head reads that, and `features`.

    Attributes:
        kind: the name under which a saved one is found again.
        usual_lr: highest learning rate of its optimizer where nobody says another.
        width: numbers of one example's vector.
        beside: sparse features that the head reads beside it.
    """

    kind: ClassVar[str]
    usual_lr: ClassVar[float]
    width: int
    beside: int = 0

    def features(self, inputs: Any) -> Csr | None:
        """Csr [examples, beside] with values, which has no parameters and no gradient; None where beside is 0."""
        return None

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """What `restore` needs besides what `save` writes, as JSON."""

    def save(self, folder: Path) -> None:
        """Write weights and buffers, and whatever else `restore` reads, into a folder that exists."""
        data = safetensors().save({name: value.cpu().contiguous() for name, value in self.state_dict().items()})
        with files.replacing(folder / WEIGHTS) as file:
            file.write(data)

    @classmethod
    def restore(cls, folder: Path, settings: dict[str, Any]) -> Encoder:
        """The encoder that `save` wrote.

        Raises:
            FileNotFoundError, ValueError: the weights are missing, damaged, or others than the settings say.
        """
        path = folder / WEIGHTS
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing; expected the weights of the encoder")
        encoder = cls(**settings)
        try:
            encoder.load_state_dict(safetensors().load_file(path))
        except Exception as error:  # safetensors' own kind, and torch's RuntimeError, say what is wrong
            raise ValueError(f"{path} does not hold this encoder's weights: {str(error).splitlines()[0]}") from error
        return encoder

    @abstractmethod
    def optimizer(self, lr: float) -> Optimizer:
        """The optimizer that suits it, over those of its parameters that require gradients."""

    def learn(self, examples: Iterable[str] | Csr) -> None:
        """Take from the training examples what must be known before the first step, such as word frequencies."""

    @abstractmethod
    def prepare(self, examples: Iterable[str] | Csr) -> Inputs:
        """Texts (or features, where the encoder reads those) as `forward` reads them.

        Raises:
            TypeError: texts where features are read, or the other way round.
        """


def safetensors() -> Any:
    """The module safetensors.torch."""
    return needed("safetensors.torch", "saving a classifier needs safetensors", "xmc")
