"""The family ``chronos``, variant ``chronos-2``: quantiles of all channels of a window together."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from sff_fast.adapters._chronos import ChronosAdapter, as_series, check_lengths, check_quantiles, pieces, quietly
from sff_fast.adapters.base import Forecast
from sff_fast.errors import CheckpointError, require


class Chronos2Adapter(ChronosAdapter):
    """Chronos-2: the channels of a window attend to each other, in training and in forecasting, as in the package's fit.

    The loss and the quantiles are the package's own; the median is the point forecast, as in the package.

    Source: Ansari et al., "Chronos-2: From Univariate to Universal Forecasting", 2025, arXiv:2510.15821
    """

    variant: ClassVar[str] = "chronos-2"
    default_variant: ClassVar[bool] = False
    channel_independent: ClassVar[bool] = False
    architecture: ClassVar[str] = "Chronos2Model"
    pipeline: ClassVar[str | None] = "Chronos2Pipeline"
    # The default learning_rate of Chronos2Pipeline.fit for full fine-tuning.
    default_lr: ClassVar[float] = 1e-6
    marks: ClassVar[tuple[str, ...]] = (
        "input_patch_embedding.hidden_layer.weight",
        "encoder.block.0.layer.1.self_attention.q.weight",
    )

    def head_parameters(self) -> list[tuple[str, nn.Parameter]]:
        """The residual block that turns the encoder's states into quantiles.

        Source: ``Chronos2Model.forward``: what comes after the encoder.
        """
        return [(name, p) for name, p in self.model.named_parameters() if name.startswith("output_patch_embedding.")]

    @classmethod
    def _make(cls, config: dict[str, Any]) -> Any:
        chronos2 = require("chronos.chronos2", cls.extra, cls.package)
        return chronos2.Chronos2Model(chronos2.Chronos2CoreConfig.from_dict(config))

    @classmethod
    def _tiny_config(cls) -> dict[str, Any]:
        return {
            "d_model": 32,
            "d_kv": 8,
            "d_ff": 64,
            "num_layers": 2,
            "num_heads": 4,
            "reg_token_id": 1,
            "chronos_pipeline_class": cls.pipeline,
            "chronos_config": {
                "context_length": 2048,
                "output_patch_size": 16,
                "input_patch_size": 16,
                "input_patch_stride": 16,
                "quantiles": [0.01, *(level / 20 for level in range(1, 20)), 0.99],
                "use_reg_token": True,
                "use_arcsinh": True,
                "max_output_patches": 64,
                "time_encoding_scale": 2048,
            },
        }

    @classmethod
    def _check(cls, model: Any, path: Path) -> None:
        check_lengths(model, ("context_length", "input_patch_size", "output_patch_size", "max_output_patches"), path)
        check_quantiles(model, path)
        if not model.config.chronos_config.get("use_reg_token"):
            raise CheckpointError(f"{str(path)!r}: use_reg_token must be true, which the package's forward pass counts on")

    def _loss(self, context: Tensor, target: Tensor) -> Tensor:
        self._keep_frequencies()
        patch, most = self._settings["output_patch_size"], self._settings["max_output_patches"]
        groups = torch.arange(len(context), device=context.device).repeat_interleave(context.shape[2])
        total, steps = torch.zeros((), device=context.device), 0
        for past, future in pieces(as_series(context), as_series(target), patch * most):
            count = math.ceil(future.shape[1] / patch)
            loss = self.model(context=past, future_target=future, group_ids=groups, num_output_patches=count).loss
            # The package's mean counts the steps of whole patches.
            total, steps = total + loss * (count * patch), steps + count * patch
        return total / steps

    def _forecast(self, context: Tensor, prediction_length: int, num_samples: int | None) -> Forecast:
        self._keep_frequencies()
        pipeline = require("chronos.chronos2", self.extra, self.package).Chronos2Pipeline(self.model)
        with quietly():
            found = pipeline.predict(context.float().transpose(1, 2).cpu(), prediction_length)
        values = torch.stack(found).to(context.device).permute(2, 0, 3, 1)
        quantiles = dict(zip(self._settings["quantiles"], values, strict=True))
        return Forecast(quantiles[0.5], quantiles)

    def _keep_frequencies(self) -> None:
        """Rotary frequencies are float32 in the package whatever the model's dtype; a cast of the model rounds them."""
        for module in self.model.modules():
            if hasattr(module, "compute_default_rope_parameters") and module.inv_freq.dtype != torch.float32:
                exact, _ = module.compute_default_rope_parameters(module.config, module.inv_freq.device)
                module.inv_freq, module.original_inv_freq = exact, exact.clone()
