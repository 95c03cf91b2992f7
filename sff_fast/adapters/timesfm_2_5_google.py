"""The variant ``timesfm-2.5-google``: TimesFM 2.5 by Google's own package."""

from __future__ import annotations

import dataclasses
import math
import os
import re
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from sff_fast import files
from sff_fast.adapters._foreign import foreign, tensor_names
from sff_fast.adapters._mixed import as_input, mixed_precision, refuse_float64
from sff_fast.adapters._series import to_series
from sff_fast.adapters._timesfm import forecast_of, tuner_loss
from sff_fast.adapters.base import Adapter, Forecast, Limits, as_dtype
from sff_fast.adapters.checkpoint import (
    existing_path,
    load_exactly,
    named_tensors,
    read_config,
    read_weights,
    weight_file,
)
from sff_fast.errors import ArgumentError, require

_WEIGHTS = ("model.safetensors",)
# What save_pretrained of the package writes beside the weights of a model that was made in memory.
_CONFIG = {"torch_compile": True}
# Parts of TimesFM 2.5 that no shape tells: channel 0 is the mean, then come nine quantiles; the point forecast is the median.
_CHANNELS = 10
_MEDIAN = 5


@dataclasses.dataclass(frozen=True)
class _Sizes:
    """The sizes of a TimesFM 2.5, the published ones by default."""

    patch: int = 32
    width: int = 1280
    inner: int = 1280
    feedforward: int = 1280
    heads: int = 16
    layers: int = 20
    point: int = 1280
    quantile: int = 1280
    horizon: int = 128
    long_horizon: int = 1024


_TINY = _Sizes(32, 32, 32, 32, 4, 2, 32, 32, 128, 256)


class TimesFM25GoogleAdapter(Adapter):
    """TimesFM 2.5 (200M) as Google publishes it (``google/timesfm-2.5-200m-pytorch``): a file of safetensors.

    Forecasts come from the package's ``forecast``, compiled with the flags that its README recommends but
    ``infer_is_positive``: on standardised data zero is no floor. The point forecast is the median.

    The package trains nothing. The loss here is that of Google's fine-tuner for the earlier versions, on the package's
    forecast without flip averaging and repair of crossing quantiles, and on values normalised by the context, so that
    windows of any scale weigh the same. A horizon of several output patches is predicted patch after patch from the true
    values before it (teacher forcing), where forecasting goes on from the median.

    Source: https://github.com/google-research/timesfm (Apache-2.0), README, ``timesfm_2p5_torch.py`` and
    ``finetuning_torch.py``; arXiv:2310.10688.
    """

    family: ClassVar[str] = "timesfm"
    variant: ClassVar[str] = "timesfm-2.5-google"
    default_variant: ClassVar[bool] = False
    module: ClassVar[str | None] = "timesfm"
    package: ClassVar[str | None] = "timesfm"
    extra: ClassVar[str | None] = "timesfm"
    # Alpha 0.7, 3e-5 and fp32 are the SFF paper's for every family; Google's fine-tuner takes 1e-4.
    marks: ClassVar[tuple[str, ...]] = (
        "stacked_xf.0.attn.per_dim_scale.per_dim_scale",
        "output_projection_quantiles.hidden_layer.weight",
    )

    def __init__(
        self, model: nn.Module, source: Path | None = None, origin: Any = None, config: dict[str, Any] | None = None
    ) -> None:
        super().__init__(model, source, origin)
        self._config = _CONFIG if config is None else config

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, dtype: torch.dtype | str | None = None) -> TimesFM25GoogleAdapter:
        """Load a ``.safetensors`` file, or a folder with ``model.safetensors``. Nothing but local files is read.

        Args:
            path: The file or folder.
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
        weights = weight_file(source, _WEIGHTS) if source.is_dir() else source
        if weights.suffix != ".safetensors" or not cls.recognises(source):
            raise foreign(source, cls.variant, f"it must be a file of safetensors with the tensor {cls.marks[0]!r}")
        state = named_tensors(read_weights(weights), weights)
        beside = weights.parent / "config.json"
        config = read_config(beside) if beside.exists() else None
        with torch.device("meta"):
            model = _class(_sizes(state))()
        load_exactly(model, state, weights, cls.variant)
        return cls(model.to(dtype).eval(), source, partial(cls.load, source, dtype=dtype), config)

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """Whether the first file of weights has the names of this model's tensors."""
        names = tensor_names(path)
        return set(cls.marks) <= set(names)

    @classmethod
    def tiny(cls, seed: int = 0) -> TimesFM25GoogleAdapter:
        """A random TimesFM 2.5 of width 32 and 2 layers, published patches and horizon (266,000 parameters)."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = _class(_TINY)()
        return cls(model.eval(), origin=partial(cls.tiny, seed))

    def build(self) -> nn.Module:
        """A new random model of the package's class."""
        return type(self.model)()

    @property
    def limits(self) -> Limits:
        """The context limit less one output patch; horizons up to the reach of the quantile head."""
        return Limits(max_context=self.model.config.context_limit - self.model.o, max_prediction=self.model.os)

    def check_lengths(self, context_length: int, prediction_length: int) -> None:
        """Check two lengths against :attr:`limits`, and that in whole patches they fit the context limit together.

        Raises:
            ArgumentError: They do not.
        """
        super().check_lengths(context_length, prediction_length)
        context, horizon = _padded(context_length, self.model.p), _padded(prediction_length, self.model.o)
        if context + horizon > self.model.config.context_limit:
            raise ArgumentError(
                f"context_length and prediction_length, in whole patches, must be at most {self.model.config.context_limit} "
                f"together for this {self.variant} model, got {context} and {horizon}: shorten the context"
            )

    def head_parameters(self) -> list[tuple[str, nn.Parameter]]:
        """The output layers: the residual blocks from a token to the forecast, of points and of quantiles.

        Source: arXiv:2310.10688, section 4, "Output Layers".
        """
        return [item for item in self.model.named_parameters() if item[0].startswith("output_projection_")]

    def config(self) -> dict[str, Any]:
        """The family and every size."""
        return {"family": self.family, "variant": self.variant, **dataclasses.asdict(_sizes(self.model.state_dict()))}

    def _write(self, folder: Path) -> None:
        """Write ``config.json`` and ``model.safetensors`` just as the package's ``save_pretrained`` does."""
        files.write_json(folder / "config.json", dict(sorted(self._config.items())))
        files.save_safetensors(folder / "model.safetensors", self.model.state_dict())

    def _loss(self, context: Tensor, target: Tensor) -> Tensor:
        """The fine-tuner's loss of mean and quantiles, on normalised values."""
        series, future = as_input(to_series(context)), as_input(to_series(target))
        padding = _padded(series.shape[1], self.model.p) - series.shape[1]
        series = nn.functional.pad(series, (padding, 0))
        # Over the padding too, as the package normalises.
        mean, deviation = series.mean(dim=1, keepdim=True), series.std(dim=1, keepdim=True)
        revin = _util().revin
        series, future = revin(series, mean, deviation), revin(future, mean, deviation)
        prediction = self._predict(series, future, padding)[:, : future.shape[1]]
        levels = list(self.model.config.quantiles)
        return tuner_loss(prediction[..., 0], prediction[..., 1:], future, levels)

    def _predict(self, series: Tensor, future: Tensor, padding: int) -> Tensor:
        """The channels [N, at least H, 10] that the package forecasts, each output patch from the true values before it."""
        model, util = self.model, _util()
        known = (future.shape[1] - 1) // model.o * model.o
        patches = torch.cat((series, future[:, :known]), dim=1).unflatten(1, (-1, model.p))
        hidden = torch.zeros_like(patches, dtype=torch.bool)
        hidden.flatten(1)[:, :padding] = True
        state = tuple(series.new_zeros(len(series)) for _ in range(3))
        statistics = []
        for patch in range(patches.shape[1]):
            state, _ = util.update_running_stats(*state, patches[:, patch], hidden[:, patch])
            statistics.append(state[1:])
        mu, sigma = (torch.stack(values, dim=1) for values in zip(*statistics, strict=True))
        with mixed_precision(model):
            inputs = util.revin(patches, mu, sigma).masked_fill(hidden, 0.0)
            (_, _, points, spreads), _ = model(inputs, hidden)
        first = series.shape[1] // model.p - 1
        at = torch.arange(first, patches.shape[1], model.m, device=series.device)
        points = util.revin(points[:, at].float(), mu[:, at], sigma[:, at], reverse=True)
        points = points.unflatten(-1, (model.o, _CHANNELS)).flatten(1, 2)
        spreads = util.revin(spreads[:, first].float(), mu[:, first], sigma[:, first], reverse=True)
        spreads = spreads.unflatten(-1, (model.os, _CHANNELS))[:, : points.shape[1]]
        median = points[..., _MEDIAN : _MEDIAN + 1]
        around = spreads - spreads[..., _MEDIAN : _MEDIAN + 1] + median[:, : spreads.shape[1]]
        return torch.cat((points[:, : around.shape[1], :1], around[..., 1:]), dim=-1)

    def _forecast(self, context: Tensor, prediction_length: int, num_samples: int | None) -> Forecast:
        series = as_input(to_series(context))
        with mixed_precision(self.model):
            point, channels = self._pipeline(series, prediction_length).forecast(
                horizon=prediction_length, inputs=list(series.cpu().numpy())
            )
        found = torch.from_numpy(channels).to(context.device)
        levels = list(self.model.config.quantiles)
        mean = torch.from_numpy(point).to(context.device)
        return forecast_of(mean, found[..., 1:], levels, context.shape[2], prediction_length)

    def _pipeline(self, series: Tensor, prediction_length: int) -> Any:
        """The package's forecaster around this model, for series of this length in one batch."""
        # Not by its constructor, which would make a second model.
        pipeline = object.__new__(_package().TimesFM_2p5_200M_torch)
        pipeline.model = self.model
        self.model.device, self.model.device_count = series.device, 1
        pipeline.compile(
            require("timesfm", self.extra, self.package).ForecastConfig(
                max_context=_padded(series.shape[1], self.model.p),
                max_horizon=_padded(prediction_length, self.model.o),
                normalize_inputs=True,
                per_core_batch_size=len(series),
                use_continuous_quantile_head=True,
                force_flip_invariance=True,
                infer_is_positive=False,
                fix_quantile_crossing=True,
            )
        )
        return pipeline


def _package() -> Any:
    return require("timesfm.timesfm_2p5.timesfm_2p5_torch", TimesFM25GoogleAdapter.extra, TimesFM25GoogleAdapter.package)


def _util() -> Any:
    return require("timesfm.torch.util", TimesFM25GoogleAdapter.extra, TimesFM25GoogleAdapter.package)


def _class(sizes: _Sizes) -> Any:
    """The package's class; its configuration is an attribute of the class, so other sizes need a class of their own."""
    published = _package().TimesFM_2p5_200M_torch_module
    if sizes == _Sizes():
        return published
    config = published.config
    layers = config.stacked_transformers
    layer = dataclasses.replace(layers.transformer, model_dims=sizes.width, hidden_dims=sizes.feedforward, num_heads=sizes.heads)

    def block(own: Any, input_dims: int, hidden_dims: int, output_dims: int) -> Any:
        return dataclasses.replace(own, input_dims=input_dims, hidden_dims=hidden_dims, output_dims=output_dims)

    point, quantile = config.output_projection_point, config.output_projection_quantiles
    other = dataclasses.replace(
        config,
        input_patch_len=sizes.patch,
        output_patch_len=sizes.horizon,
        output_quantile_len=sizes.long_horizon,
        tokenizer=block(config.tokenizer, 2 * sizes.patch, sizes.inner, sizes.width),
        stacked_transformers=dataclasses.replace(layers, num_layers=sizes.layers, transformer=layer),
        output_projection_point=block(point, sizes.width, sizes.point, sizes.horizon * _CHANNELS),
        output_projection_quantiles=block(quantile, sizes.width, sizes.quantile, sizes.long_horizon * _CHANNELS),
    )
    return type("TimesFM_2p5_other_sizes", (published,), {"config": other})


def _sizes(state: dict[str, Tensor]) -> _Sizes:
    """The sizes that the shapes of the tensors tell; the published one for a tensor that is not there."""

    def size(name: str, dim: int, published: int, per: int = 1) -> int:
        tensor = state.get(name)
        return tensor.shape[dim] // per if tensor is not None and tensor.dim() > dim else published

    usual = _Sizes()
    width = size("tokenizer.output_layer.weight", 0, usual.width)
    head = size("stacked_xf.0.attn.per_dim_scale.per_dim_scale", 0, width // usual.heads)
    layers = {int(found[1]) for name in state if (found := re.match(r"stacked_xf\.(\d+)\.", name))}
    return _Sizes(
        patch=size("tokenizer.hidden_layer.weight", 1, usual.patch, 2),
        width=width,
        inner=size("tokenizer.hidden_layer.weight", 0, usual.inner),
        feedforward=size("stacked_xf.0.ff0.weight", 0, usual.feedforward),
        heads=width // head,
        layers=len(layers),
        point=size("output_projection_point.hidden_layer.weight", 0, usual.point),
        quantile=size("output_projection_quantiles.hidden_layer.weight", 0, usual.quantile),
        horizon=size("output_projection_point.output_layer.weight", 0, usual.horizon, _CHANNELS),
        long_horizon=size("output_projection_quantiles.output_layer.weight", 0, usual.long_horizon, _CHANNELS),
    )


def _padded(length: int, step: int) -> int:
    return math.ceil(length / step) * step
