"""The variant ``timesfm-2.0``: TimesFM 1 and 2.0 by the class of the package transformers."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sff_fast.adapters._mixed import as_input, mixed_precision
from sff_fast.adapters._series import to_series
from sff_fast.adapters._timesfm import TimesFMTransformers, forecast_of
from sff_fast.adapters.base import Forecast
from sff_fast.errors import ArgumentError


class TimesFM20Adapter(TimesFMTransformers):
    """TimesFM 2.0 (500M) in the folder that transformers publishes (``google/timesfm-2.0-500m-pytorch``).

    The point forecast is the mean. The context is padded to a whole patch rather than to the model's longest context:
    the padding is masked, so the forecast is the same, for a fraction of the work.

    Source: ``TimesFmModelForPrediction``; https://github.com/google-research/timesfm, ``v1``.
    """

    variant: ClassVar[str] = "timesfm-2.0"
    default_variant: ClassVar[bool] = False
    # Alpha 0.7, 3e-5 and fp32 are the SFF paper's for every family; Google's fine-tuner takes 1e-4.
    marks: ClassVar[tuple[str, ...]] = ("decoder.layers.0.self_attn.scaling", "horizon_ff_layer.output_layer.weight")

    _kind = "timesfm"
    _classes = ("TimesFmModelForPrediction", "TimesFmConfig")
    _head = "horizon_ff_layer."
    _tiny: ClassVar[dict[str, Any]] = {
        "head_dim": 8,
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
    }

    def __init__(self, model: nn.Module, source: Path | None = None, origin: Any = None, freq: int = 0) -> None:
        super().__init__(model, source, origin)
        self._freq = freq

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, freq: int = 0, dtype: torch.dtype | str | None = None) -> TimesFM20Adapter:
        """Load a folder with ``config.json`` and ``model.safetensors``, or shards of it. Nothing but local files is read.

        Args:
            path: The folder.
            freq: The data's frequency: 0 daily and higher, 1 weekly and monthly, 2 quarterly and lower. It is not saved.
            dtype: dtype of the parameters. Default: that of the file.

        Returns:
            The adapter, its model in eval mode.

        Raises:
            ArgumentError: An option is not allowed.
            CheckpointError: The checkpoint is missing, damaged or of another family.
            MissingPackageError: transformers is not installed.
        """
        model, folder = cls._read(path, dtype)
        count = model.config.freq_size
        if not isinstance(freq, int) or isinstance(freq, bool) or not 0 <= freq < count:
            raise ArgumentError(f"freq must be an integer in [0, {count}) for this timesfm-2.0 model, got {freq!r}")
        return cls(model, folder, partial(cls.load, folder, freq=freq, dtype=dtype), freq)

    @classmethod
    def tiny(cls, seed: int = 0) -> TimesFM20Adapter:
        """A random TimesFM 2.0 of width 32 and 2 layers, published patches and horizon (104,000 parameters)."""
        return cls(cls._make_tiny(seed), origin=partial(cls.tiny, seed))

    def _loss(self, context: Tensor, target: Tensor) -> Tensor:
        """Mean squared error of the mean plus the quantile loss, as the class computes it for a target of its horizon.

        A shorter target counts up to its end.
        """
        future = as_input(to_series(target))
        output, length = self._call(as_input(to_series(context))), future.shape[1]
        quantiles = output.full_predictions[:, :length, 1:].float()
        return F.mse_loss(output.mean_predictions[:, :length].float(), future) + self.model._quantile_loss(quantiles, future)

    def _forecast(self, context: Tensor, prediction_length: int, num_samples: int | None) -> Forecast:
        output = self._call(as_input(to_series(context)))
        levels = list(self.model.config.quantiles)
        return forecast_of(output.mean_predictions, output.full_predictions[..., 1:], levels, context.shape[2], prediction_length)

    def _call(self, series: Tensor) -> Any:
        with mixed_precision(self.model):
            return self.model(
                past_values=list(series),
                freq=[self._freq] * len(series),
                forecast_context_len=self._padded(series.shape[1]),
            )
