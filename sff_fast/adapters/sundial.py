"""The family ``sundial``: a causal transformer that draws whole horizons by flow matching."""

from __future__ import annotations

import copy
import os
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from sff_fast.adapters import _huggingface as huggingface
from sff_fast.adapters._series import from_series, to_series
from sff_fast.adapters.base import Adapter, Forecast, Limits, as_dtype
from sff_fast.errors import CheckpointError, require

_ARCHITECTURE = "SundialForPrediction"
_KIND = "sundial"
_SIZES = ("input_token_len", "hidden_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings")
# As the package's own classes have them: TSGenerationMixin.generate, SundialForPrediction.forward with revin.
_SAMPLING_EPSILON = 1e-5
_TRAINING_LEAST_STD = 1e-2
_TINY = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "output_token_lens": [96],
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "flow_loss_depth": 2,
    "num_sampling_steps": 10,
}


class SundialAdapter(Adapter):
    """Sundial by the class that sktime ships: the package's flow-matching loss, sample paths of its own sampler.

    As in the package's training, every patch of the context is asked for the steps that follow it, as many as the target
    has; values are normalised by the mean and deviation of the context. The mean of the paths is the point forecast.

    Source: Liu et al., "Sundial: A Family of Highly Capable Time Series Foundation Models", ICML 2025, arXiv:2502.00816;
    https://github.com/thuml/Sundial, https://github.com/sktime/sktime (sktime.libs.sundial)
    """

    family: ClassVar[str] = "sundial"
    variant: ClassVar[str] = "sundial"
    module: ClassVar[str | None] = "sktime"
    package: ClassVar[str | None] = "sktime"
    extra: ClassVar[str | None] = "sundial"
    # learning_rate in the example of sktime's SundialForecaster.pretrain.
    default_lr: ClassVar[float] = 5e-5
    # The model card of thuml/sundial-base-128m and sktime's examples draw 20.
    default_num_samples: ClassVar[int | None] = 20
    marks: ClassVar[tuple[str, ...]] = ("flow_loss.net.input_proj.weight", "embed_layer.residual_layer.weight")

    @classmethod
    def load(
        cls, path: str | os.PathLike[str], *, dropout: float | None = None, dtype: torch.dtype | str | None = None
    ) -> SundialAdapter:
        """Load a folder with ``config.json`` and ``model.safetensors``. Nothing but local files is read.

        Args:
            path: The folder.
            dropout: Dropout of embedding and attention in train mode. Default: the checkpoint's.
            dtype: dtype of the parameters. Default: that of the file.

        Returns:
            The adapter, its model in eval mode.

        Raises:
            ArgumentError: An option is not allowed.
            CheckpointError: The checkpoint is missing, damaged or of another family.
            MissingPackageError: sktime or transformers is not installed.
        """
        dtype = as_dtype(dtype)
        huggingface.check_dropout(dropout)
        folder, config = huggingface.open_folder(path, cls.variant)
        if config.get("model_type") != _KIND:
            huggingface.refuse(folder, cls.variant, f"model_type must be {_KIND!r}", repr(config.get("model_type")))
        _check(config, folder / huggingface.CONFIG)
        if dropout is not None:
            config["dropout_rate"] = dropout
        _classes()
        # Constructed here and given its tensors afterwards: from_pretrained leaves the rotary buffers uninitialised.
        model = huggingface.construct(partial(_make, config), folder / huggingface.CONFIG, cls.variant, cls.extra)
        huggingface.load_all(model, folder, cls.variant, cls.extra)
        return cls(model.to(dtype).eval(), folder, partial(cls.load, folder, dropout=dropout, dtype=dtype))

    @classmethod
    def tiny(cls, seed: int = 0) -> SundialAdapter:
        """A random Sundial of patches of 16 values, width 32, two layers and horizons up to 96."""
        _classes()
        with huggingface.seeded_apart(seed):
            model = _make(copy.deepcopy(_TINY))
        return cls(model.eval(), origin=partial(cls.tiny, seed))

    def build(self) -> nn.Module:
        """A new random model of the package's class with this one's configuration."""
        return type(self.model)(copy.deepcopy(self.model.config))

    @property
    def limits(self) -> Limits:
        """Contexts of whole patches, up to the positions that the model was made for; one horizon of the sampler."""
        config = self.model.config
        patch = config.input_token_len
        return Limits(patch, patch * config.max_position_embeddings, patch, config.output_token_lens[-1])

    def head_parameters(self) -> list[tuple[str, nn.Parameter]]:
        """The network that draws horizons from the transformer's states.

        Source: ``SundialForPrediction.forward``: what comes after ``SundialModel``.
        """
        return [(name, parameter) for name, parameter in self.model.named_parameters() if name.startswith("flow_loss.")]

    def config(self) -> dict[str, Any]:
        """The family and the fields of the package's configuration."""
        return {"family": self.family, "variant": self.variant, **huggingface.describe(self.model)}

    def _write(self, folder: Path) -> None:
        huggingface.write(self.model, folder, _ARCHITECTURE)

    def _loss(self, context: Tensor, target: Tensor) -> Tensor:
        """The package's loss for series of context and target, as sktime's SundialDataCollator hands them over.

        They are normalised before, just as ``revin=True`` would, but in float32 whatever the model's dtype.
        """
        config, dtype = self.model.config, self.model.dtype
        patch, longest, length = config.input_token_len, config.output_token_lens[-1], target.shape[1]
        mean, std = _scale(context)
        std = torch.where(std > _TRAINING_LEAST_STD, std, torch.ones((), device=std.device))
        # What is beyond the target is masked in the loss, and zero in the data's own units, as in the package.
        series = nn.functional.pad(
            torch.cat((to_series(context.float()), to_series(target.float())), dim=1), (0, longest - length)
        )
        series = ((series - mean) / std).to(dtype)
        inputs, labels = series[:, : context.shape[1]], series[:, patch:]
        counted = (torch.arange(longest, device=series.device) < length).to(dtype).expand(len(series), longest)
        tokens = torch.ones(len(series), context.shape[1] // patch, dtype=dtype, device=series.device)
        return self._call(input_ids=inputs, labels=labels, loss_masks=tokens, mask_y=counted).loss

    def _forecast(self, context: Tensor, prediction_length: int, num_samples: int | None) -> Forecast:
        """Paths of the package's sampler, normalised outside of it as its ``generate`` does.

        ``generate`` itself does not work with transformers 5, and ``revin=True`` not with several paths.
        """
        mean, std = _scale(context)
        std = std + _SAMPLING_EPSILON
        inputs = ((to_series(context.float()) - mean) / std).to(self.model.dtype)
        output = self._call(input_ids=inputs, num_samples=num_samples, max_output_length=prediction_length)
        paths = output.logits[:, :, :prediction_length].float() * std[:, :, None] + mean[:, :, None]
        samples = from_series(paths, context.shape[2])
        return Forecast(samples.mean(dim=1), samples=samples)

    def _call(self, **inputs: Any) -> Any:
        """The package's forward pass, without a cache, which transformers 5 no longer takes from it."""
        with huggingface.mask_warning_ignored():
            return self.model(**inputs, use_cache=False, return_dict=True)


def _scale(context: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each series, [B * C, 1]."""
    series = to_series(context.float())
    return series.mean(dim=1, keepdim=True), series.std(dim=1, keepdim=True, unbiased=False)


def _classes() -> Any:
    """The package's module, whose imports need transformers too."""
    extra, package = SundialAdapter.extra, SundialAdapter.package
    require("sktime", extra, package)
    require("transformers", extra)
    return require("sktime.libs.sundial", extra, package)


def _make(config: dict[str, Any]) -> Any:
    classes = _classes()
    return classes.SundialForPrediction(classes.SundialConfig.from_dict(config))


def _check(config: dict[str, Any], path: Path) -> None:
    for name in _SIZES:
        value = config.get(name, 1)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise CheckpointError(f"{str(path)!r}: {name} must be an integer of at least 1, got {value!r}: replace it")
    lengths = config.get("output_token_lens", [1])
    if not isinstance(lengths, list) or not lengths or not all(type(length) is int and length >= 1 for length in lengths):
        raise CheckpointError(f"{str(path)!r}: output_token_lens must list integers of at least 1, got {lengths!r}: replace it")
