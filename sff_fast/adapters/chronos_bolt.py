"""The family ``chronos``, variant ``chronos-bolt``: patches in, quantiles of all steps out."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from sff_fast.adapters._chronos import (
    ChronosAdapter,
    as_series,
    check_lengths,
    check_quantiles,
    pieces,
    quietly,
)
from sff_fast.adapters._series import from_series
from sff_fast.adapters.base import Forecast
from sff_fast.errors import require


class ChronosBoltAdapter(ChronosAdapter):
    """Chronos-Bolt: the package's own quantile loss and quantiles; the median is the point forecast, as in the package.

    The package sums its loss over the steps of the horizon, so the pieces of a longer horizon are summed too.
    """

    variant: ClassVar[str] = "chronos-bolt"
    architecture: ClassVar[str] = "ChronosBoltModelForForecasting"
    pipeline: ClassVar[str | None] = "ChronosBoltPipeline"
    # AutoGluon, where Bolt was published: fine_tune_lr of timeseries/src/autogluon/timeseries/models/chronos/model.py.
    default_lr: ClassVar[float] = 1e-5
    marks: ClassVar[tuple[str, ...]] = (
        "input_patch_embedding.hidden_layer.weight",
        "output_patch_embedding.output_layer.weight",
        "decoder.block.0.layer.1.EncDecAttention.q.weight",
    )

    def head_parameters(self) -> list[tuple[str, nn.Parameter]]:
        """The residual block that turns the decoder's state into quantiles.

        Source: ``ChronosBoltModelForForecasting.forward``: what comes after the T5 stack.
        """
        return [(name, p) for name, p in self.model.named_parameters() if name.startswith("output_patch_embedding.")]

    @classmethod
    def _make(cls, config: dict[str, Any]) -> Any:
        module = require("chronos.chronos_bolt", cls.extra, cls.package)
        return module.ChronosBoltModelForForecasting(module.T5Config.from_dict(config))

    @classmethod
    def _tiny_config(cls) -> dict[str, Any]:
        return {
            "d_model": 32,
            "d_kv": 8,
            "d_ff": 64,
            "num_layers": 2,
            "num_heads": 4,
            "initializer_factor": 0.05,
            "decoder_start_token_id": 0,
            "chronos_pipeline_class": cls.pipeline,
            "chronos_config": {
                "context_length": 2048,
                "prediction_length": 64,
                "input_patch_size": 16,
                "input_patch_stride": 16,
                "quantiles": [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9],
                "use_reg_token": True,
            },
        }

    @classmethod
    def _check(cls, model: Any, path: Path) -> None:
        check_lengths(model, ("context_length", "prediction_length", "input_patch_size", "input_patch_stride"), path)
        check_quantiles(model, path)

    def _loss(self, context: Tensor, target: Tensor) -> Tensor:
        total = torch.zeros((), device=context.device)
        for past, future in pieces(as_series(context), as_series(target), self._settings["prediction_length"]):
            total = total + self.model(context=past, target=future).loss
        return total

    def _forecast(self, context: Tensor, prediction_length: int, num_samples: int | None) -> Forecast:
        pipeline = require("chronos", self.extra, self.package).ChronosBoltPipeline(self.model)
        with quietly():
            found = pipeline.predict(as_series(context), prediction_length)
        levels = self._settings["quantiles"]
        values = from_series(found.to(context.device), context.shape[2])
        quantiles = {level: values[:, index] for index, level in enumerate(levels)}
        return Forecast(quantiles[0.5], quantiles)
