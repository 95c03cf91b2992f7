"""The variant ``timesfm-2.5``: TimesFM 2.5 by the class of the package transformers."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from sff_fast.adapters._mixed import as_input, mixed_precision
from sff_fast.adapters._series import to_series
from sff_fast.adapters._timesfm import TimesFMTransformers, forecast_of, tuner_loss
from sff_fast.adapters.base import Forecast
from sff_fast.errors import ArgumentError

_LOSSES = ("class", "tuner")


class TimesFM25Adapter(TimesFMTransformers):
    """TimesFM 2.5 (200M) in the folder that transformers publishes (``google/timesfm-2.5-200m-transformers``).

    The class is called as Google's own fine-tuning example does, with ``forecast_context_len`` set to the context, and
    with ``truncate_negative=False``: on standardised data zero is no floor. Its point forecast is the median.

    The quantile part of the class's loss leaves out the median's channel and then pairs what remains with the levels in
    order, so that the mean is pulled to the quantile 0.1, the quantile 0.1 to 0.2, and so on up to 0.4, to 0.5 (transformers
    5.23). ``loss="tuner"`` pairs every level with its own channel instead.

    Source: ``TimesFm2_5ModelForPrediction``; https://github.com/google-research/timesfm, ``finetune_lora.py``.
    """

    variant: ClassVar[str] = "timesfm-2.5"
    default_variant: ClassVar[bool] = True
    # Alpha 0.7, 3e-5 and fp32 are the SFF paper's for every family; Google's examples take 1e-4 for LoRA.
    marks: ClassVar[tuple[str, ...]] = ("model.layers.0.self_attn.scaling", "output_projection_quantiles.output_layer.weight")

    _kind = "timesfm2_5"
    _classes = ("TimesFm2_5ModelForPrediction", "TimesFm2_5Config")
    _head = "output_projection_"
    # transformers' conversion_mapping.py: from_pretrained and save_pretrained translate these.
    _renamed: ClassVar[dict[str, str]] = {".mlp.ff0.": ".mlp.fc1.", ".mlp.ff1.": ".mlp.fc2."}
    _tiny: ClassVar[dict[str, Any]] = {
        "context_length": 512,
        "head_dim": 8,
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "num_key_value_heads": 4,
        "output_quantile_len": 256,
    }

    def __init__(self, model: nn.Module, source: Path | None = None, origin: Any = None, loss: str = "class") -> None:
        super().__init__(model, source, origin)
        self._which = loss

    @classmethod
    def load(
        cls, path: str | os.PathLike[str], *, loss: str = "class", dtype: torch.dtype | str | None = None
    ) -> TimesFM25Adapter:
        """Load a folder with ``config.json`` and ``model.safetensors``, or shards of it. Nothing but local files is read.

        Args:
            path: The folder.
            loss: ``"class"``: what the class computes, the mean squared error of the median plus its quantile loss, on
                values normalised by the context. ``"tuner"``: that of Google's fine-tuner, the mean squared error of the
                mean plus twice the quantile loss of every level, on the same values.
            dtype: dtype of the parameters. Default: that of the file.

        Returns:
            The adapter, its model in eval mode.

        Raises:
            ArgumentError: An option is not allowed.
            CheckpointError: The checkpoint is missing, damaged or of another family.
            MissingPackageError: transformers is not installed.
        """
        if loss not in _LOSSES:
            raise ArgumentError(f"loss must be one of {', '.join(map(repr, _LOSSES))}, got {loss!r}")
        model, folder = cls._read(path, dtype)
        return cls(model, folder, partial(cls.load, folder, loss=loss, dtype=dtype), loss)

    @classmethod
    def tiny(cls, seed: int = 0) -> TimesFM25Adapter:
        """A random TimesFM 2.5 of width 32 and 2 layers, published patches and horizon (266,000 parameters)."""
        return cls(cls._make_tiny(seed), origin=partial(cls.tiny, seed))

    def _loss(self, context: Tensor, target: Tensor) -> Tensor:
        """The class's loss, or the fine-tuner's on the class's forecast; both on values normalised by the context."""
        series, future = as_input(to_series(context)), as_input(to_series(target))
        if self._which == "class":
            return self._call(series, future_values=future).loss
        # Over the padding too, as the class normalises.
        past = nn.functional.pad(series, (self._padded(series.shape[1]) - series.shape[1], 0))
        mean, deviation = past.mean(dim=1, keepdim=True), past.std(dim=1, keepdim=True)
        full = self._call(series).full_predictions[:, : future.shape[1]]
        revin = self.model.model._revin
        full, future = revin(full, mean, deviation), revin(future, mean, deviation)
        return tuner_loss(full[..., 0], full[..., 1:], future, list(self.model.config.quantiles))

    def _forecast(self, context: Tensor, prediction_length: int, num_samples: int | None) -> Forecast:
        output = self._call(as_input(to_series(context)))
        levels = list(self.model.config.quantiles)
        return forecast_of(output.mean_predictions, output.full_predictions[..., 1:], levels, context.shape[2], prediction_length)

    def _call(self, series: Tensor, **inputs: Any) -> Any:
        with mixed_precision(self.model):
            return self.model(
                past_values=list(series),
                forecast_context_len=self._padded(series.shape[1]),
                truncate_negative=False,
                **inputs,
            )
