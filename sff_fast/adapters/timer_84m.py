"""The variant ``timer-84m`` of the family ``timer``: the decoder-only Timer in the Hugging Face layout."""

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

_ARCHITECTURE = "TimerForPrediction"
_KIND = "timer"
_SIZES = ("input_token_len", "hidden_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings")
# Below this deviation a training window counts as constant, and is only centred.
_LEAST_STD = 1e-2
_TINY = {
    "input_token_len": 16,
    "output_token_lens": [16],
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}


class Timer84mAdapter(Adapter):
    """Timer-84m by the class that sktime ships, each channel on its own.

    Every patch predicts what follows it. Windows are normalised by the mean and deviation of their context, as
    ``revin=True`` of the package does in generation; the training loss is the package's own over series normalised just
    so: the mean squared error of the prediction of every patch, those within the context included. Forecasts go on from
    their own patches over a growing context, as the package's ``generate`` does, without its cache, which transformers 5
    no longer takes from it.

    Source: Liu et al., "Timer: Generative Pre-trained Transformers Are Large Time Series Models", ICML 2024,
    arXiv:2402.02368; https://huggingface.co/thuml/timer-base-84m, https://github.com/sktime/sktime (sktime.libs.timer)
    """

    family: ClassVar[str] = "timer"
    variant: ClassVar[str] = "timer-84m"
    default_variant: ClassVar[bool] = False
    module: ClassVar[str | None] = "sktime"
    package: ClassVar[str | None] = "sktime"
    extra: ClassVar[str | None] = "timer84m"
    # Alpha, learning rate and precision are the base's: the SFF paper found them with the other variant of Timer.
    tasks: ClassVar[frozenset[str]] = frozenset({"forecast", "anomaly"})
    marks: ClassVar[tuple[str, ...]] = ("lm_heads.0.weight", "layers.0.ffn_layer.gate_proj.weight", "embed_layer.emb.weight")

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, dtype: torch.dtype | str | None = None) -> Timer84mAdapter:
        """Load a folder with ``config.json`` and ``model.safetensors``. Nothing but local files is read.

        Args:
            path: The folder.
            dtype: dtype of the parameters. Default: that of the file.

        Returns:
            The adapter, its model in eval mode.

        Raises:
            ArgumentError: An option is not allowed.
            CheckpointError: The checkpoint is missing, damaged or of another family.
            MissingPackageError: sktime or transformers is not installed.
        """
        dtype = as_dtype(dtype)
        folder, config = huggingface.open_folder(path, cls.variant)
        if config.get("model_type") != _KIND:
            huggingface.refuse(folder, cls.variant, f"model_type must be {_KIND!r}", repr(config.get("model_type")))
        _check(config, folder / huggingface.CONFIG)
        _classes()
        # Constructed here and given its tensors afterwards: from_pretrained leaves the rotary buffers uninitialised.
        model = huggingface.construct(partial(_make, config), folder / huggingface.CONFIG, cls.variant, cls.extra)
        huggingface.load_all(model, folder, cls.variant, cls.extra)
        return cls(model.to(dtype).eval(), folder, partial(cls.load, folder, dtype=dtype))

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """Whether a folder's ``config.json`` is that of transformers' class."""
        return huggingface.config_of(path).get("model_type") == _KIND

    @classmethod
    def tiny(cls, seed: int = 0) -> Timer84mAdapter:
        """A random Timer of patches of 16 values, width 32 and two layers."""
        _classes()
        with huggingface.seeded_apart(seed):
            model = _make(copy.deepcopy(_TINY))
        return cls(model.eval(), origin=partial(cls.tiny, seed))

    def build(self) -> nn.Module:
        """A new random model of the package's class with this one's configuration."""
        return _mended(type(self.model)(copy.deepcopy(self.model.config)))

    @property
    def limits(self) -> Limits:
        """Contexts of whole patches, up to the positions that the model was made for; forecasts of any length."""
        config = self.model.config
        patch = config.input_token_len
        return Limits(min_context=patch, max_context=patch * config.max_position_embeddings, multiple_of=patch)

    def limits_for(self, task: str) -> Limits:
        """As for forecasting; anomaly detection needs a second patch, the first that the model expects anything of."""
        patch, limits = self.model.config.input_token_len, self.limits
        return Limits(2 * patch, limits.max_context, patch) if task == "anomaly" else limits

    def head_parameters(self) -> list[tuple[str, nn.Parameter]]:
        """The projections of hidden states to values, one for each length of output.

        Source: ``TimerForPrediction.forward``: what comes after ``TimerModel``.
        """
        return [(name, parameter) for name, parameter in self.model.named_parameters() if name.startswith("lm_heads.")]

    def config(self) -> dict[str, Any]:
        """The family and the fields of the package's configuration."""
        return {"family": self.family, "variant": self.variant, **huggingface.describe(self.model)}

    def _write(self, folder: Path) -> None:
        huggingface.write(self.model, folder, _ARCHITECTURE)

    def _loss(self, context: Tensor, target: Tensor) -> Tensor:
        """The package's loss over all patches, with the target's own as further context; its end may cut a patch."""
        patch, length = self.model.config.input_token_len, context.shape[1] + target.shape[1]
        mean, std = _scale(context)
        std = torch.where(std > _LEAST_STD, std, torch.ones((), device=std.device))
        series = ((torch.cat((to_series(context.float()), to_series(target.float())), dim=1) - mean) / std).to(self.model.dtype)
        hidden = self._hidden(series[:, : (length - 1) // patch * patch])
        losses = []
        for head, ahead in zip(self.model.lm_heads, self.model.config.output_token_lens, strict=True):
            missing = max(hidden.shape[1] * patch + ahead - length, 0)
            labels = nn.functional.pad(series, (0, missing))[:, patch:].unfold(1, ahead, patch)[:, : hidden.shape[1]]
            known = (torch.arange(length + missing, device=series.device) < length)[patch:].unfold(0, ahead, patch)
            known = known[: hidden.shape[1]].expand_as(labels)
            losses.append((head(hidden) - labels)[known].square().mean())
        return torch.stack(losses).mean()

    def _forecast(self, context: Tensor, prediction_length: int, num_samples: int | None) -> Forecast:
        """What ``generate`` computes: each round normalises all that there is, and takes the longest head that fits."""
        series, length = to_series(context.float()), context.shape[1]
        while series.shape[1] < length + prediction_length:
            mean, std = series.mean(dim=1, keepdim=True), series.std(dim=1, keepdim=True)
            # A constant series is continued as the model continues zeros; the package divides by zero.
            std = torch.where(std > 0, std, torch.ones((), device=std.device))
            missing = length + prediction_length - series.shape[1]
            with huggingface.mask_warning_ignored():
                values = self.model(
                    input_ids=((series - mean) / std).to(self.model.dtype),
                    max_output_length=missing,
                    use_cache=False,
                    return_dict=True,
                ).logits
            series = torch.cat((series, values.float() * std + mean), dim=1)
        return Forecast(from_series(series[:, length:], context.shape[2]))

    def _reconstruct(self, values: Tensor) -> Tensor:
        """Every patch as predicted from those before it, normalised by the whole window; NaN for the first one."""
        patch = self.model.config.input_token_len
        mean, std = _scale(values)
        std = torch.where(std > 0, std, torch.ones((), device=std.device))
        series = ((to_series(values.float()) - mean) / std).to(self.model.dtype)
        expected = self.model.lm_heads[0](self._hidden(series[:, :-patch]))[..., :patch].flatten(1).float() * std + mean
        expected = torch.cat((torch.full_like(expected[:, :patch], torch.nan), expected), dim=1)
        return from_series(expected, values.shape[2])

    def _hidden(self, series: Tensor) -> Tensor:
        """[N, L] to the states after each patch, [N, patches, width]."""
        with huggingface.mask_warning_ignored():
            return self.model.model(input_ids=series, use_cache=False, return_dict=True).last_hidden_state


def _scale(context: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each series, [B * C, 1], as ``revin`` of the package takes them."""
    series = to_series(context.float())
    return series.mean(dim=1, keepdim=True), series.std(dim=1, keepdim=True)


def _classes() -> Any:
    """The package's module, whose imports need transformers too."""
    extra, package = Timer84mAdapter.extra, Timer84mAdapter.package
    require("sktime", extra, package)
    require("transformers", extra)
    return require("sktime.libs.timer.modeling_timer", extra, package)


def _make(config: dict[str, Any]) -> Any:
    classes = _classes()
    return _mended(classes.TimerForPrediction(classes.TimerConfig.from_dict(config)))


def _mended(model: Any) -> Any:
    """Give ``model(labels=...)`` its own squared error back, which a property of transformers 5 of that name hides."""
    if "loss_function" in model._modules:
        model._loss_function = model._modules.pop("loss_function")
    return model


def _check(config: dict[str, Any], path: Path) -> None:
    for name in _SIZES:
        value = config.get(name, 1)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise CheckpointError(f"{str(path)!r}: {name} must be an integer of at least 1, got {value!r}: replace it")
    lengths, patch = config.get("output_token_lens", []), config.get("input_token_len", 1)
    if not isinstance(lengths, list) or not lengths or not all(type(length) is int and length >= 1 for length in lengths):
        raise CheckpointError(f"{str(path)!r}: output_token_lens must list integers of at least 1, got {lengths!r}: replace it")
    if lengths != sorted(lengths) or any(length % patch for length in lengths):
        raise CheckpointError(
            f"{str(path)!r}: output_token_lens must be rising multiples of input_token_len={patch}, got {lengths!r}: "
            "the package's generation goes on from whole patches"
        )
