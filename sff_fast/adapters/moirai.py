"""The variant ``moirai``: MOIRAI 1.0 and 1.1, a masked encoder with a mixture of distributions on top."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from sff_fast.adapters._mixed import mixed_precision
from sff_fast.adapters._moirai import MoiraiBase, float32_outputs, uni2ts
from sff_fast.adapters.base import Forecast
from sff_fast.errors import ArgumentError

# What the package's recipes fine-tune with and evaluate hourly data with.
_PATCH_SIZE = 32


class MoiraiAdapter(MoiraiBase):
    """MOIRAI 1.0 and 1.1 (small, base, large).

    The patch size is chosen at load: one model has weights for several. Training uses it, and so does forecasting unless
    ``patch_size="auto"`` was given: then the package's forecaster picks, for each window, the size that best predicts the
    end of the context from what is before it.

    Source: Woo et al., arXiv:2402.02592; https://github.com/SalesforceAIResearch/uni2ts, ``uni2ts.model.moirai``.
    """

    variant: ClassVar[str] = "moirai"
    default_variant: ClassVar[bool] = True
    # MoiraiForecast's own.
    default_num_samples: ClassVar[int | None] = 100
    # Alpha 0.7, 3e-5 and fp32 are the SFF paper's for every family; the package's recipes fine-tune in fp32 too.
    marks: ClassVar[tuple[str, ...]] = ("mask_encoding.weight", "param_proj.proj.weights_logits.weight")

    _source = ("uni2ts.model.moirai", "MoiraiModule", "MoiraiForecast")
    _head = "param_proj."
    _tiny: ClassVar[dict[str, Any]] = {
        "attn_dropout_p": 0.0,
        "d_model": 64,
        "distr_output": {
            "_target_": "uni2ts.distribution.mixture.MixtureOutput",
            "components": [
                {"_target_": "uni2ts.distribution.student_t.StudentTOutput"},
                {"_target_": "uni2ts.distribution.normal.NormalFixedScaleOutput", "scale": 0.001},
                {"_target_": "uni2ts.distribution.negative_binomial.NegativeBinomialOutput"},
                {"_target_": "uni2ts.distribution.log_normal.LogNormalOutput"},
            ],
        },
        "dropout_p": 0.0,
        "max_seq_len": 512,
        "num_layers": 2,
        "patch_sizes": [8, 16, 32],
        "scaling": True,
    }

    def __init__(
        self,
        model: nn.Module,
        source: Path | None = None,
        origin: Any = None,
        config: dict[str, Any] | None = None,
        patch_size: int | str = _PATCH_SIZE,
    ) -> None:
        super().__init__(model, source, origin, config)
        self._patch_size = patch_size

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        patch_size: int | str | None = None,
        dtype: torch.dtype | str | None = None,
    ) -> MoiraiAdapter:
        """Load a folder with ``config.json`` and ``model.safetensors``. Nothing but local files is read.

        Args:
            path: The folder.
            patch_size: Values in a patch, one of the model's ``patch_sizes`` (published: 8, 16, 32, 64, 128); the paper
                takes 32 or 64 for hourly data, shorter ones for lower frequencies. ``"auto"``: chosen for each window
                when forecasting, 32 in training. Default: 32, or the model's largest below it. It is not saved.
            dtype: dtype of the parameters. Default: that of the file.

        Returns:
            The adapter, its model in eval mode.

        Raises:
            ArgumentError: An option is not allowed.
            CheckpointError: The checkpoint is missing, damaged or of another family.
            MissingPackageError: timecopilot-uni2ts is not installed.
        """
        model, source, config = cls._read(path, dtype)
        if patch_size not in (None, "auto", *model.patch_sizes) or isinstance(patch_size, bool):
            known = ", ".join(map(str, model.patch_sizes))
            raise ArgumentError(f"patch_size must be one of {known} or 'auto' for this moirai model, got {patch_size!r}")
        chosen = _usual(model) if patch_size is None else patch_size
        return cls(model, source, partial(cls.load, source, patch_size=patch_size, dtype=dtype), config, chosen)

    @classmethod
    def tiny(cls, seed: int = 0) -> MoiraiAdapter:
        """A random MOIRAI of patches of 8, 16 and 32, width 64 and 2 layers (182,000 parameters)."""
        return cls(cls._make_tiny(seed), origin=partial(cls.tiny, seed), config=cls._tiny)

    @property
    def patch_size(self) -> int:
        """Values in a patch in training, and in forecasting unless that chooses for each window."""
        return _usual(self.model) if self._patch_size == "auto" else self._patch_size

    @property
    def _least_patch(self) -> int:
        return min(self.model.patch_sizes) if self._patch_size == "auto" else self._patch_size

    def check_lengths(self, context_length: int, prediction_length: int) -> None:
        """As for every variant; ``patch_size="auto"`` also needs a context longer than the horizon.

        Raises:
            ArgumentError: A length is not accepted.
        """
        super().check_lengths(context_length, prediction_length)
        if self._patch_size == "auto" and context_length <= prediction_length:
            raise ArgumentError(
                f"context_length must be more than prediction_length ({prediction_length}) for patch_size='auto', which tries "
                f"the sizes on the end of the context, got {context_length}"
            )

    def _loss(self, context: Tensor, target: Tensor) -> Tensor:
        """Negative log-likelihood of the mixture on the patches of the horizon, each window weighing the same.

        This is the loss of the package's ``MoiraiFinetune``.
        """
        packed = self._pack(self._forecaster(context, target.shape[1], patch_size=self.patch_size), context, target)
        with mixed_precision(self.model), float32_outputs(self.model.param_proj):
            distribution = self.model(**packed._asdict(), patch_size=torch.full_like(packed.time_id, self.patch_size))
        return uni2ts("uni2ts.loss.packed").PackedNLLLoss()(
            pred=distribution,
            target=packed.target,
            prediction_mask=packed.prediction_mask,
            observed_mask=packed.observed_mask,
            sample_id=packed.sample_id,
            variate_id=packed.variate_id,
        )

    def _forecast(self, context: Tensor, prediction_length: int, num_samples: int | None) -> Forecast:
        """Samples of the package's forecaster; the mean of them is the point forecast of gluonts' ``SampleForecast``."""
        forecaster = self._forecaster(context, prediction_length, patch_size=self._patch_size, num_samples=num_samples)
        if self._patch_size == "auto":
            # The forecaster takes context_length + prediction_length values and tries the sizes on the last of them.
            forecaster.hparams.context_length -= prediction_length
        with mixed_precision(self.model), float32_outputs(self.model.param_proj):
            samples = forecaster(**self._past(context))
        samples = samples.unsqueeze(-1) if context.shape[2] == 1 else samples
        return Forecast(samples.mean(dim=1), samples=samples)


def _usual(model: Any) -> int:
    """The patch size where none was chosen."""
    return max((size for size in model.patch_sizes if size <= _PATCH_SIZE), default=min(model.patch_sizes))
