"""The variant ``moirai-moe``: a causal decoder with a mixture of experts, and a mixture of distributions on top."""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from sff_fast.adapters._mixed import mixed_precision
from sff_fast.adapters._moirai import MoiraiBase, float32_outputs, uni2ts
from sff_fast.adapters.base import Forecast
from sff_fast.adapters.moirai import MoiraiAdapter


class MoiraiMoEAdapter(MoiraiBase):
    """MOIRAI-MoE 1.0 (small, base).

    The experts of a token are chosen by its distance from ``encoder.centroid``, a buffer that the checkpoint holds and
    training does not change; a model made from random numbers draws it from a standard normal, since the package's
    constructor leaves it uninitialised.

    Source: Liu et al., "Moirai-MoE", ICML 2025, arXiv:2410.10469; https://github.com/SalesforceAIResearch/uni2ts,
    ``uni2ts.model.moirai_moe``.
    """

    variant: ClassVar[str] = "moirai-moe"
    default_variant: ClassVar[bool] = False
    # MoiraiMoEForecast's own.
    default_num_samples: ClassVar[int | None] = 100
    # Alpha 0.7, 3e-5 and fp32 are the SFF paper's for every family; the package has no recipe for this one.
    marks: ClassVar[tuple[str, ...]] = ("encoder.centroid", "feat_proj.weight")

    _source = ("uni2ts.model.moirai_moe", "MoiraiMoEModule", "MoiraiMoEForecast")
    _head = "param_proj."
    _tiny: ClassVar[dict[str, Any]] = {**MoiraiAdapter._tiny, "d_ff": 32, "patch_sizes": [16]}

    @classmethod
    def tiny(cls, seed: int = 0) -> MoiraiMoEAdapter:
        """A random MOIRAI-MoE of width 64, 2 layers and 32 experts in each (445,000 parameters)."""
        return cls(cls._make_tiny(seed), origin=partial(cls.tiny, seed), config=cls._tiny)

    @classmethod
    def _make_tiny(cls, seed: int) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = cls._instantiate(cls._tiny)
            model.encoder.centroid.normal_()
        return model.eval()

    @property
    def patch_size(self) -> int:
        """Values in a patch: the published models have one size, 16."""
        return self.model.patch_sizes[0]

    def _loss(self, context: Tensor, target: Tensor) -> Tensor:
        """Negative log-likelihood of the mixture on the patches of the horizon, each window weighing the same.

        Every patch is predicted at the one before it, which within the horizon is the true one (teacher forcing); the
        horizon stays out of the normalisation. The loss is the package's ``PackedNLLLoss``.
        """
        forecaster = self._forecaster(context, target.shape[1], patch_size=self.patch_size)
        packed = self._pack(forecaster, context, target)
        with mixed_precision(self.model), float32_outputs(self.model.param_proj):
            distribution = self.model(**packed._asdict(), patch_size=torch.full_like(packed.time_id, self.patch_size))
        last, horizon, _ = self._grid(context, target)
        before = torch.cat((last[:, None], horizon[:, :-1]), dim=1).flatten()

        def moved(values: Tensor) -> Tensor:
            placed = torch.zeros_like(values)
            placed[:, before] = values[:, horizon.flatten()]
            return placed

        return uni2ts("uni2ts.loss.packed").PackedNLLLoss()(
            pred=distribution,
            target=moved(packed.target),
            prediction_mask=moved(packed.prediction_mask),
            observed_mask=moved(packed.observed_mask),
            sample_id=packed.sample_id,
            variate_id=packed.variate_id,
        )

    def _forecast(self, context: Tensor, prediction_length: int, num_samples: int | None) -> Forecast:
        """Samples of the package's forecaster, a patch after the other; their mean is the point forecast of gluonts."""
        forecaster = self._forecaster(context, prediction_length, patch_size=self.patch_size, num_samples=num_samples)
        with mixed_precision(self.model), float32_outputs(self.model.param_proj):
            samples = forecaster(**self._past(context))
        samples = samples.unsqueeze(-1) if context.shape[2] == 1 else samples
        return Forecast(samples.mean(dim=1), samples=samples)
