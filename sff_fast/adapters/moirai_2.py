"""The variant ``moirai-2``: MOIRAI 2.0, a causal decoder that predicts quantiles of several patches at once."""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from sff_fast.adapters._mixed import mixed_precision
from sff_fast.adapters._moirai import MoiraiBase, uni2ts
from sff_fast.adapters._series import from_series, to_series
from sff_fast.adapters.base import Forecast


class Moirai2Adapter(MoiraiBase):
    """MOIRAI 2.0 (small).

    Each position predicts the quantiles of the ``num_predict_token`` patches that follow. Beyond them the package's
    forecaster goes on from every quantile and takes quantiles of the results. It does so for one channel only, so the
    channels of a window are series of their own.

    Source: Liu et al., "Moirai 2.0: When Less Is More for Time Series Forecasting", arXiv:2511.11698;
    https://github.com/SalesforceAIResearch/uni2ts, ``uni2ts.model.moirai2``.
    """

    variant: ClassVar[str] = "moirai-2"
    default_variant: ClassVar[bool] = False
    # Alpha 0.7, 3e-5 and fp32 are the SFF paper's for every family; the package has no recipe for this one.
    marks: ClassVar[tuple[str, ...]] = ("in_proj.residual_layer.weight", "out_proj.residual_layer.weight")

    _source = ("uni2ts.model.moirai2", "Moirai2Module", "Moirai2Forecast")
    _head = "out_proj."
    _tiny: ClassVar[dict[str, Any]] = {
        "attn_dropout_p": 0.0,
        "d_ff": 128,
        "d_model": 64,
        "dropout_p": 0.0,
        "max_seq_len": 512,
        "num_layers": 2,
        "num_predict_token": 4,
        "patch_size": 16,
        "quantile_levels": [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9],
        "scaling": True,
    }

    @classmethod
    def tiny(cls, seed: int = 0) -> Moirai2Adapter:
        """A random MOIRAI-2 of width 64 and 2 layers (170,000 parameters)."""
        return cls(cls._make_tiny(seed), origin=partial(cls.tiny, seed), config=cls._tiny)

    @property
    def patch_size(self) -> int:
        """Values in a patch."""
        return self.model.patch_size

    def _loss(self, context: Tensor, target: Tensor) -> Tensor:
        """Quantile loss of the horizon on normalised values: the mean over levels, values and windows.

        Patches are predicted as in forecasting, ``num_predict_token`` of them from the patch before, which after the
        first such block is the true one (teacher forcing). The horizon stays out of the normalisation. The loss is the
        package's ``PackedQuantileMAELoss``, on what its module returns for training.
        """
        context, target = (to_series(values).unsqueeze(-1) for values in (context, target))
        packed = self._pack(self._forecaster(context, target.shape[1]), context, target)
        with mixed_precision(self.model):
            output, scaled = self.model(**packed._asdict(), training_mode=True)
        last, horizon, count = self._grid(context, target)
        block = self.model.num_predict_token
        step = torch.arange(count, device=context.device)
        before = torch.cat((last[:, None], horizon), dim=1)[:, step // block * block]
        predictions = output.float().unflatten(-1, (block, -1))[:, before, step % block]
        # Only the patches of the horizon are read of these.
        placed = predictions.new_zeros((*packed.time_id.shape, predictions.shape[-1]))
        placed[:, horizon.flatten()] = predictions.flatten(1, 2)
        return uni2ts("uni2ts.loss.packed").PackedQuantileMAELoss(self.model.quantile_levels)(
            pred=placed,
            target=scaled,
            prediction_mask=packed.prediction_mask,
            observed_mask=packed.observed_mask,
            sample_id=packed.sample_id,
            variate_id=packed.variate_id,
        )

    def _forecast(self, context: Tensor, prediction_length: int, num_samples: int | None) -> Forecast:
        """Quantiles of the package's forecaster; the point forecast is the median, as in gluonts' ``QuantileForecast``."""
        series = to_series(context).unsqueeze(-1)
        forecaster = self._forecaster(series, prediction_length)
        with mixed_precision(self.model):
            values = forecaster(**self._past(series))
        found = (from_series(values[:, level], context.shape[2]) for level in range(values.shape[1]))
        quantiles = dict(zip(self.model.quantile_levels, found, strict=True))
        return Forecast(quantiles[0.5], quantiles)
