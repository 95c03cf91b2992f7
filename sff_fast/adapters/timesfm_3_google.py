"""The variant ``timesfm-3-google``: TimesFM 3 by Google's own package."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import math
import os
import types
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from sff_fast import files
from sff_fast.adapters import _huggingface as huggingface
from sff_fast.adapters._foreign import foreign
from sff_fast.adapters._mixed import as_input, mixed_precision, refuse_float64
from sff_fast.adapters._timesfm import tuner_loss
from sff_fast.adapters.base import Adapter, Forecast, Limits, as_dtype
from sff_fast.adapters.checkpoint import existing_path, load_exactly, read_config
from sff_fast.errors import CheckpointError, require

_FIELDS = {"residual_block_config", "transformer_config"}
# What the package's constructor raises for a configuration that makes no model.
_INVALID = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


class TimesFM3GoogleAdapter(Adapter):
    """TimesFM 3 in the folder that Google publishes (``google/timesfm-3.0-pytorch``).

    Forecasts come from the package's ``TimesFM3Forecaster`` with its own settings; the point forecast is the median. The
    channels of a window attend to each other.

    The package calls its class inference-only and has no trainer, but gradients flow through ``decode``, its single pass
    over context and horizon, once the decorator that switches them off is taken away. That is what is trained here, with
    the quantile loss of Google's fine-tuner for earlier versions, on values normalised by the context. No gradient flows
    through the statistics that the class estimates of its own forecast: where they are zero, as behind a constant
    beginning of a window, that of the square root is infinite.

    Source: https://github.com/google-research/timesfm (Apache-2.0), ``timesfm3``.
    """

    family: ClassVar[str] = "timesfm"
    variant: ClassVar[str] = "timesfm-3-google"
    default_variant: ClassVar[bool] = False
    module: ClassVar[str | None] = "timesfm3"
    package: ClassVar[str | None] = "timesfm"
    extra: ClassVar[str | None] = "timesfm"
    # Alpha 0.7, 3e-5 and fp32 are the SFF paper's for every family.
    marks: ClassVar[tuple[str, ...]] = ("pre_transformer_resblock.", "transformer_stack.layers.0.seq_attn.per_dim_scale")

    _tiny: ClassVar[dict[str, Any]] = {
        "residual_block_config": {"hidden_dims": 32, "output_dims": 32, "use_bias": False, "activation": "relu"},
        "transformer_config": {
            "num_layers": 2,
            "transformer": {
                "model_dims": 32,
                "hidden_dims": 32,
                "num_heads": 4,
                "attention_norm": "rms",
                "feedforward_norm": "rms",
                "qk_norm": "rms",
                "use_bias": False,
                "use_rope_seq": True,
                "use_rope_var": False,
                "ff_activation": "relu",
                "deterministic": True,
            },
        },
    }

    def __init__(
        self, model: nn.Module, source: Path | None = None, origin: Any = None, config: dict[str, Any] | None = None
    ) -> None:
        super().__init__(model, source, origin)
        self._config = model.to_dict() if config is None else config

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, dtype: torch.dtype | str | None = None) -> TimesFM3GoogleAdapter:
        """Load a folder with ``config.json`` and ``model.safetensors``. Nothing but local files is read.

        Args:
            path: The folder.
            dtype: dtype of the parameters. Default: that of the file.

        Returns:
            The adapter, its model in eval mode.

        Raises:
            ArgumentError: An option is not allowed.
            CheckpointError: The checkpoint is missing, damaged or of another family.
            MissingPackageError: timesfm is not installed.
        """
        dtype = as_dtype(dtype)
        refuse_float64(dtype, cls.variant)
        source = existing_path(path)
        if not source.is_dir() or not (source / huggingface.CONFIG).exists():
            raise foreign(source, cls.variant, "it must be a folder with config.json and model.safetensors")
        config = read_config(source / huggingface.CONFIG)
        if not config.keys() >= _FIELDS:
            raise foreign(source, cls.variant, f"config.json must hold {' and '.join(sorted(_FIELDS))}")
        state, weights = huggingface.read_state(source)
        model = _construct(config, source / huggingface.CONFIG)
        load_exactly(model, state, weights, cls.variant)
        return cls(model.to(dtype).eval(), source, partial(cls.load, source, dtype=dtype), config)

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """Whether ``config.json`` describes this model's parts."""
        return huggingface.config_of(path).keys() >= _FIELDS

    @classmethod
    def tiny(cls, seed: int = 0) -> TimesFM3GoogleAdapter:
        """A random TimesFM 3 of width 32 and 2 layers, published patches (53,000 parameters)."""
        with huggingface.seeded_apart(seed):
            model = _make(cls._tiny)
        return cls(model.eval(), origin=partial(cls.tiny, seed))

    def build(self) -> nn.Module:
        """A new random model of the package's class with this one's configuration."""
        return _make(self._config)

    @property
    def limits(self) -> Limits:
        """Contexts up to the forecaster's longest; forecasts of any length, in one pass."""
        return Limits(max_context=_forecasting()._MAX_CONTEXT_LENGTH)

    def head_parameters(self) -> list[tuple[str, nn.Parameter]]:
        """The output layer, from a token to the quantiles of the patches that follow.

        Source: ``TimesFM3Torch``, where it is ``output_head``.
        """
        return [item for item in self.model.named_parameters() if item[0].startswith("output_head.")]

    def config(self) -> dict[str, Any]:
        """The family and every field of the published configuration."""
        return {"family": self.family, "variant": self.variant, **copy.deepcopy(self._config)}

    def _write(self, folder: Path) -> None:
        """Write ``config.json`` and ``model.safetensors`` just as the package's ``save_pretrained`` does."""
        files.write_json(folder / huggingface.CONFIG, dict(sorted(self._config.items())))
        files.save_safetensors(folder / huggingface.WEIGHTS[0], self.model.state_dict())

    def _loss(self, context: Tensor, target: Tensor) -> Tensor:
        """Twice the quantile loss, summed over the levels, of the forecast on normalised values."""
        series, future = (as_input(values).transpose(1, 2) for values in (context, target))
        with mixed_precision(self.model):
            quantiles = _Trainable(self.model).decode(series, self._whole(future.shape[2]))
        mean, deviation = series.mean(dim=2, keepdim=True), series.std(dim=2, keepdim=True, correction=0)
        revin = _util().revin
        quantiles = revin(quantiles[:, :, : future.shape[2]].float(), mean, deviation)
        future = (future - mean) / torch.where(deviation < _util()._TOLERANCE, 1.0, deviation)
        return tuner_loss(None, quantiles.flatten(0, 1), future.flatten(0, 1), list(self.model.quantiles))

    def _forecast(self, context: Tensor, prediction_length: int, num_samples: int | None) -> Forecast:
        forecaster = self._forecaster(len(context), context.device)
        windows = list(as_input(context).transpose(1, 2).cpu().numpy())
        with mixed_precision(self.model):
            found = list(forecaster.predict_batch(windows, prediction_length, return_quantiles=True))
        mean = torch.stack([torch.from_numpy(one.forecast) for one in found]).transpose(1, 2).to(context.device)
        values = torch.stack([torch.from_numpy(one.quantiles) for one in found]).transpose(1, 2).to(context.device)
        return Forecast(mean, dict(zip(self.model.quantiles, values.unbind(dim=-1), strict=True)))

    def _forecaster(self, batch: int, device: torch.device) -> Any:
        """The package's forecaster around this model, for one batch."""
        package = _forecasting()
        # Not by its constructor, which would load a second model.
        forecaster = object.__new__(package.TimesFM3Forecaster)
        forecaster.model, forecaster.device = self.model, device
        forecaster.config = dataclasses.replace(
            package.ModelConfig(),
            per_core_batch_size=batch,
            input_patch_length=self.model.input_patch_len,
            output_patch_length=self.model.output_patch_len,
            quantiles=list(self.model.quantiles),
            median_quantile_index=len(self.model.quantiles) // 2,
        )
        return forecaster

    def _whole(self, length: int) -> int:
        """A horizon in whole output patches, as the forecaster asks for."""
        patch = self.model.output_patch_len
        return math.ceil(length / patch) * patch


class _Trainable:
    """A TimesFM 3 whose single pass has gradients: the package's own code, with two names bound anew.

    Args:
        model: The model; it is not changed.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        forward = inspect.unwrap(type(model).forward)
        library = forward.__globals__["cpm_revin_refine_lib"]
        constant = types.SimpleNamespace(cpm_iterative_revin_refine=torch.no_grad()(library.cpm_iterative_revin_refine))
        own = types.FunctionType(forward.__code__, {**forward.__globals__, "cpm_revin_refine_lib": constant})
        own.__defaults__ = forward.__defaults__
        self.forward = types.MethodType(own, model)

    def decode(self, target: Tensor, horizon: int) -> Tensor:
        """[B, C, L] -> [B, C, H, Q], as the model's ``decode`` without its ``torch.no_grad``."""
        return inspect.unwrap(type(self._model).decode)(self, target=target, horizon=horizon)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


def _construct(config: dict[str, Any], path: Path) -> nn.Module:
    """A model of this configuration with random weights, without a touch to the global generator."""
    try:
        with torch.random.fork_rng(devices=[]):
            return _make(config)
    except _INVALID as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise CheckpointError(f"{str(path)!r} describes no valid timesfm-3-google model ({reason}): replace it") from error


def _make(config: dict[str, Any]) -> Any:
    make = require("timesfm3.torch.model", TimesFM3GoogleAdapter.extra, TimesFM3GoogleAdapter.package).TimesFM3Torch
    known = inspect.signature(make.__init__).parameters
    return make(**copy.deepcopy({name: value for name, value in config.items() if name in known}))


def _forecasting() -> Any:
    module = "timesfm3.torch.timesfm3_forecaster"
    return require(module, TimesFM3GoogleAdapter.extra, TimesFM3GoogleAdapter.package)


def _util() -> Any:
    return require("timesfm3.torch.util", TimesFM3GoogleAdapter.extra, TimesFM3GoogleAdapter.package)
