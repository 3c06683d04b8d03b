"""transformers' from_pretrained puts the thresholds back that a model was saved with. Importing this makes them known.

transformers has one hook for changes of a model that its config names, made for quantization; nothing is quantized
here, and the model that comes out counts as one that is not.
"""

from __future__ import annotations

import logging
from typing import Any

from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from gossamer.nn.threshold.applying import restore_thresholds
from gossamer.nn.threshold.record import METHOD

_log = logging.getLogger(__name__)


@register_quantization_config(METHOD)
class ThresholdsConfig(QuantizationConfigMixin):
    """The entry of config.json."""

    def __init__(self, layers: dict[str, dict[str, Any]], quant_method: str = METHOD, **_: Any) -> None:
        self.quant_method: Any = quant_method
        self.layers = layers


@register_quantizer(METHOD)
class ThresholdsQuantizer(HfQuantizer):
    """Restores thresholds once the weights are there."""

    def is_serializable(self) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return True

    def _process_model_after_weight_loading(self, model: Any, **_: Any) -> Any:
        model.config.quantization_config = self.quantization_config.to_dict()
        model.hf_quantizer, model.is_quantized = None, False
        del model.quantization_method
        for module in model.modules():
            vars(getattr(module, "config", module)).pop("_is_quantized", None)
        report = restore_thresholds(model)
        _log.info("%d layers leave out small activations again, as they were saved", len(report.rows))
        return model
