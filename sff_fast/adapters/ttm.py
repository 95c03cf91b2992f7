"""The family ``ttm``: IBM's TinyTimeMixer, by the class of the package granite-tsfm."""

from __future__ import annotations

import copy
import json
import os
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from sff_fast import files
from sff_fast.adapters.base import Adapter, Forecast, Limits, as_dtype
from sff_fast.adapters.checkpoint import (
    ForeignCheckpointError,
    existing_path,
    load_exactly,
    named_tensors,
    read_config,
    read_weights,
    unwrapped,
    weight_file,
    weight_files,
)
from sff_fast.errors import ArgumentError, CheckpointError, require

_ARCHITECTURE = "TinyTimeMixerForPrediction"
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_REQUIRED = ("context_length", "prediction_length", "patch_length", "d_model", "num_layers", "num_input_channels")
_LOSSES = ("mse", "mae", "huber", "pinball")
# Fields that say with which software a configuration was written, not what the model is.
_VOLATILE = ("transformers_version", "torch_dtype", "dtype", "_name_or_path")
# Inputs that these need are not part of a forecasting data set.
_UNSUPPORTED = {
    "exogenous_channel_indices": "known future values of exogenous channels",
    "prediction_channel_indices": "targets of some channels only",
    "categorical_vocab_size_list": "static categorical values",
}
_TINY = {
    "context_length": 96,
    "prediction_length": 24,
    "patch_length": 16,
    "patch_stride": 16,
    "num_input_channels": 1,
    "d_model": 16,
    "num_layers": 2,
    "adaptive_patching_levels": 2,
    "use_decoder": True,
    "decoder_d_model": 8,
    "decoder_num_layers": 1,
    "dropout": 0.1,
    "head_dropout": 0.1,
    "scaling": "std",
    "loss": "mse",
}


class TTMAdapter(Adapter):
    """TinyTimeMixer for forecasting: the package's own class, its own loss, its own files.

    Dropout and head dropout are the checkpoint's, as in the package: they act while the model is in train mode, and
    options of :meth:`load` change them. Windows hold all channels, as the package trains it; a model that mixes
    channels accepts no other number of them than it was made for.

    Source: Ekambaram et al., "Tiny Time Mixers", NeurIPS 2024, arXiv:2401.03955; https://github.com/ibm-granite/granite-tsfm
    """

    family: ClassVar[str] = "ttm"
    variant: ClassVar[str] = "ttm"
    module: ClassVar[str | None] = "tsfm_public"
    package: ClassVar[str | None] = "granite-tsfm"
    extra: ClassVar[str | None] = "ttm"
    channel_independent: ClassVar[bool] = False
    # Lowest validation error of 1e-5, 3e-5, 1e-4, 3e-4 and 1e-3 on 10 % of ETTh1, halved every epoch.
    default_lr: ClassVar[float] = 1e-4
    marks: ClassVar[tuple[str, ...]] = ("backbone.encoder.patcher.weight", "head.base_forecast_block.weight")

    def __init__(self, model: nn.Module, source: Path | None = None, origin: Any = None, freq_token: int | None = None) -> None:
        super().__init__(model, source, origin)
        self._freq_token = freq_token

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        prediction_filter_length: int | None = None,
        dropout: float | None = None,
        head_dropout: float | None = None,
        freq_token: int | None = None,
        dtype: torch.dtype | str | None = None,
    ) -> TTMAdapter:
        """Load a folder with ``config.json`` and ``model.safetensors``. Nothing but local files is read.

        Args:
            path: The folder.
            prediction_filter_length: Forecast only the first steps; the package's own option, saved with the model.
            dropout: Dropout of the mixer layers. Default: the checkpoint's.
            head_dropout: Dropout of the decoder and head. Default: the checkpoint's.
            freq_token: The token of the data's frequency (``tsfm_public``'s ``get_freq_token``), for the models that
                are tuned with a resolution prefix, and only for those.
            dtype: dtype of the parameters. Default: that of the file.

        Returns:
            The adapter, its model in eval mode.

        Raises:
            ArgumentError: An option is not allowed.
            CheckpointError: The checkpoint is missing, damaged or of another family.
            MissingPackageError: granite-tsfm is not installed.
        """
        dtype = as_dtype(dtype)
        options = {
            "prediction_filter_length": prediction_filter_length,
            "dropout": dropout,
            "head_dropout": head_dropout,
        }
        source = existing_path(path)
        if not source.is_dir():
            raise CheckpointError(
                f"a ttm checkpoint is a folder with config.json and model.safetensors, got the file {str(source)!r}"
            )
        config = read_config(source / "config.json")
        _check_kind(config, source)
        weights = weight_file(source, _WEIGHTS)
        state = named_tensors(read_weights(weights), weights)
        _check_config(config, source / "config.json")
        config.update(_checked(options, config["prediction_length"]))
        model = _construct(config, source / "config.json")
        _check_freq_token(freq_token, model.config)
        load_exactly(model, state, weights, cls.family)
        origin = partial(cls.load, source, freq_token=freq_token, dtype=dtype, **options)
        return cls(model.to(dtype).eval(), source, origin, freq_token)

    @classmethod
    def tiny(cls, seed: int = 0) -> TTMAdapter:
        """A random TTM of context 96, horizon 24 and 7,700 parameters."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = _model_class()(_config_class()(**_TINY))
        return cls(model.eval(), origin=partial(cls.tiny, seed))

    def build(self) -> nn.Module:
        """A new random model of the package's class with this one's configuration."""
        return _model_class()(copy.deepcopy(self.model.config))

    @property
    def limits(self) -> Limits:
        """The context that the model was made for, and forecasts up to its own horizon."""
        config = self.model.config
        context = config.masked_context_length or config.context_length
        horizon = config.prediction_filter_length or config.prediction_length
        return Limits(min_context=context, max_context=context, max_prediction=horizon)

    def head_parameters(self) -> list[tuple[str, nn.Parameter]]:
        """Everything but the backbone: the decoder and the forecasting head.

        Source: arXiv:2401.03955, which fine-tunes these two with a frozen backbone; the package's few-shot examples
        freeze ``model.backbone`` and nothing else.
        """
        return [(name, parameter) for name, parameter in self.model.named_parameters() if not name.startswith("backbone.")]

    def config(self) -> dict[str, Any]:
        """The family and every field of the package's configuration that differs from its default."""
        fields = json.loads(self.model.config.to_json_string())
        return {
            "family": self.family,
            "variant": self.variant,
            **{name: value for name, value in fields.items() if name not in _VOLATILE},
        }

    def _write(self, folder: Path) -> None:
        """Write ``config.json`` and ``model.safetensors`` just as the package's ``save_pretrained`` does."""
        config = copy.deepcopy(self.model.config)
        config.architectures = [_ARCHITECTURE]
        config.dtype = next(self.model.parameters()).dtype
        files.write_json(folder / "config.json", json.loads(config.to_json_string()))
        files.save_safetensors(folder / "model.safetensors", self.model.state_dict(), {"format": "pt"})

    def _loss(self, context: Tensor, target: Tensor) -> Tensor:
        """The loss that the model's class computes itself; a shorter target is masked beyond its end."""
        horizon, length = self.limits.max_prediction, target.shape[1]
        inputs = self._inputs(context)
        if length < horizon:
            if self.model.config.multi_quantile_head:
                raise ArgumentError(
                    f"prediction_length must be {horizon} for this ttm model with quantiles, got {length}: "
                    f"load it with prediction_filter_length={length}"
                )
            observed = torch.arange(horizon, device=target.device) < length
            inputs["future_observed_mask"] = observed[None, :, None].expand(len(target), horizon, target.shape[2])
            target = nn.functional.pad(target, (0, 0, 0, horizon - length))
        return self.model(**inputs, future_values=target.to(self.model.dtype), return_dict=True).loss

    def _forecast(self, context: Tensor, prediction_length: int, num_samples: int | None) -> Forecast:
        output = self.model(**self._inputs(context), return_dict=True)
        mean = _at_least_float32(output.prediction_outputs[:, :prediction_length])
        if output.quantile_outputs is None:
            return Forecast(mean)
        values = _at_least_float32(output.quantile_outputs[:, :, :prediction_length])
        return Forecast(mean, dict(zip(self.model.config.quantile_levels, values.unbind(dim=1), strict=True)))

    def _inputs(self, context: Tensor) -> dict[str, Tensor]:
        config = self.model.config
        mixes = "mix_channel" in (config.mode, config.decoder_mode) or config.enable_forecast_channel_mixing
        if mixes and context.shape[2] != config.num_input_channels:
            raise ArgumentError(
                f"this ttm model mixes its {config.num_input_channels} channels, got data with {context.shape[2]}"
            )
        inputs = {"past_values": context.to(self.model.dtype)}
        if self._freq_token is not None:
            inputs["freq_token"] = torch.full((len(context),), self._freq_token, device=context.device)
        return inputs


def _model_class() -> Any:
    module = require("tsfm_public.models.tinytimemixer.modeling_tinytimemixer", TTMAdapter.extra, TTMAdapter.package)
    return module.TinyTimeMixerForPrediction


def _config_class() -> Any:
    module = require("tsfm_public.models.tinytimemixer.configuration_tinytimemixer", TTMAdapter.extra, TTMAdapter.package)
    return module.TinyTimeMixerConfig


def _construct(config: dict[str, Any], path: Path) -> Any:
    """A model of this configuration with random weights, without a touch to the global generator."""
    make_config, make_model = _config_class().from_dict, _model_class()
    try:
        with torch.random.fork_rng(devices=[]):
            return make_model(make_config(config))
    except (TypeError, ValueError, AttributeError, RuntimeError, ArithmeticError, LookupError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{str(path)!r} describes no valid TTM ({reason}): replace it") from error


def _check_kind(config: dict[str, Any], folder: Path) -> None:
    kind = config.get("model_type")
    architectures = config.get("architectures") or [_ARCHITECTURE]
    if kind == "tinytimemixer" and architectures == [_ARCHITECTURE]:
        return
    found = weight_files(folder, _WEIGHTS)
    state = named_tensors(unwrapped(read_weights(found[0]))[0], found[0]) if len(found) == 1 else {}
    first = f"; its first tensor is {next(iter(state))!r}" if state else ""
    raise ForeignCheckpointError(
        f"{str(folder / 'config.json')!r} does not fit the family 'ttm': model_type must be 'tinytimemixer' and "
        f"architectures [{_ARCHITECTURE!r}], got {kind!r} and {config.get('architectures')!r}{first}",
        tuple(state),
    )


def _check_config(config: dict[str, Any], path: Path) -> None:
    for name in _REQUIRED:
        value = config.get(name)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise CheckpointError(f"{str(path)!r}: {name} must be an integer of at least 1, got {value!r}: replace it")
    if config.get("patch_stride", config["patch_length"]) != config["patch_length"]:
        raise CheckpointError(f"{str(path)!r}: patch_stride must equal patch_length, as the package demands: replace it")
    if config.get("loss", "mse") not in _LOSSES:
        raise CheckpointError(
            f"{str(path)!r}: loss must be one of {', '.join(_LOSSES)}, got {config['loss']!r}: the package computes no other"
        )
    for name, need in _UNSUPPORTED.items():
        if config.get(name):
            raise CheckpointError(f"{str(path)!r}: a model with {name} needs {need}, which sff_fast cannot supply")


def _check_freq_token(freq_token: int | None, config: Any) -> None:
    if not config.resolution_prefix_tuning:
        if freq_token is not None:
            raise ArgumentError("this ttm model has no resolution prefix: leave out freq_token")
        return
    most = config.frequency_token_vocab_size
    if not isinstance(freq_token, int) or not 0 <= freq_token < most:
        raise ArgumentError(
            f"this ttm model has a resolution prefix and needs freq_token, an integer in [0, {most}), got {freq_token!r}"
        )


def _checked(options: dict[str, Any], horizon: int) -> dict[str, Any]:
    """The options that were given, each within its range."""
    given = {name: value for name, value in options.items() if value is not None}
    for name in ("dropout", "head_dropout"):
        value = given.get(name, 0.0)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1:
            raise ArgumentError(f"{name} must lie in [0, 1), got {value!r}")
    length = given.get("prediction_filter_length", 1)
    if isinstance(length, bool) or not isinstance(length, int) or not 1 <= length <= horizon:
        raise ArgumentError(f"prediction_filter_length must be an integer in [1, {horizon}], got {length!r}")
    return given


def _at_least_float32(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
