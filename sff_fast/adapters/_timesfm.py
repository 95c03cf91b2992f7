"""What the variants of the family ``timesfm`` share: series, quantiles and losses, and the folders of transformers' two."""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sff_fast.adapters import _huggingface as huggingface
from sff_fast.adapters._foreign import foreign
from sff_fast.adapters._mixed import refuse_float64
from sff_fast.adapters._series import from_series
from sff_fast.adapters.base import Adapter, Forecast, Limits, as_dtype
from sff_fast.adapters.checkpoint import existing_path
from sff_fast.errors import CheckpointError, require


class TimesFMTransformers(Adapter):
    """A TimesFM of the package transformers: its own class, loss and forecast, the channels of a window one by one.

    A checkpoint is a folder with ``config.json`` and ``model.safetensors``, or shards of it and their index.

    Source: Das et al., "A decoder-only foundation model for time-series forecasting", ICML 2024, arXiv:2310.10688;
    https://github.com/google-research/timesfm
    """

    family: ClassVar[str] = "timesfm"
    module: ClassVar[str | None] = "transformers"
    package: ClassVar[str | None] = "transformers"
    extra: ClassVar[str | None] = "timesfm"

    #: ``model_type`` of the configuration, the class of the model and that of the configuration.
    _kind: ClassVar[str]
    _classes: ClassVar[tuple[str, str]]
    #: Fields of the small model's configuration that differ from the published one's.
    _tiny: ClassVar[dict[str, Any]]
    #: Beginning of the names of the parameters that linear probing trains.
    _head: ClassVar[str]
    #: Parts of the names in files, and what the class calls them.
    _renamed: ClassVar[dict[str, str]] = {}

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """Whether ``config.json`` names this model type."""
        return huggingface.config_of(path).get("model_type") == cls._kind

    @classmethod
    def _read(cls, path: Any, dtype: Any) -> tuple[nn.Module, Path]:
        """The model of a folder, in eval mode, and the folder.

        Raises:
            ArgumentError: The dtype is not allowed.
            CheckpointError: The checkpoint is missing, damaged or of another family.
            MissingPackageError: transformers is not installed.
        """
        dtype = as_dtype(dtype)
        refuse_float64(dtype, cls.variant)
        source = existing_path(path)
        if not source.is_dir() or not (source / huggingface.CONFIG).exists():
            raise foreign(source, cls.variant, "it must be a folder with config.json and model.safetensors")
        folder, config = huggingface.open_folder(source, cls.variant)
        if config.get("model_type") != cls._kind:
            raise foreign(folder, cls.variant, f"model_type must be {cls._kind!r}, got {config.get('model_type')!r}")
        model = huggingface.construct(partial(cls._make, config), folder / huggingface.CONFIG, cls.variant, cls.extra)
        _check_quantiles(list(model.config.quantiles), folder / huggingface.CONFIG)
        state, weights = huggingface.read_state(folder)
        state = {cls._own_name(name): tensor for name, tensor in state.items()}
        huggingface.load_state(model, state, weights, cls.variant)
        return model.to(dtype).eval(), folder

    @classmethod
    def _make(cls, config: dict[str, Any]) -> nn.Module:
        transformers = require("transformers", cls.extra, cls.package)
        model, settings = (getattr(transformers, name) for name in cls._classes)
        return model(settings.from_dict(copy.deepcopy(config)))

    @classmethod
    def _make_tiny(cls, seed: int) -> nn.Module:
        with huggingface.seeded_apart(seed):
            return cls._make(cls._tiny).eval()

    def build(self) -> nn.Module:
        """A new random model of the package's class with this one's configuration."""
        return type(self.model)(copy.deepcopy(self.model.config))

    @property
    def limits(self) -> Limits:
        """The class's own context and horizon. It pads a context that is no multiple of a patch, and cuts a longer one."""
        return Limits(max_context=self.model.config.context_length, max_prediction=self.model.config.horizon_length)

    def head_parameters(self) -> list[tuple[str, nn.Parameter]]:
        """The output layers: the residual blocks from a token to the patch that follows.

        Source: arXiv:2310.10688, section 4, "Output Layers".
        """
        return [(name, parameter) for name, parameter in self.model.named_parameters() if name.startswith(self._head)]

    def config(self) -> dict[str, Any]:
        """The family, the variant and the fields of the package's configuration."""
        return {"family": self.family, "variant": self.variant, **huggingface.describe(self.model)}

    def _write(self, folder: Path) -> None:
        huggingface.write(self.model, folder, self._classes[0], self._file_name)

    def _padded(self, length: int) -> int:
        """A context length made a multiple of a patch, which the class pads to on the left."""
        patch = self.model.config.patch_length
        return -(-length // patch) * patch

    @classmethod
    def _own_name(cls, name: str) -> str:
        for there, here in cls._renamed.items():
            name = name.replace(there, here)
        return name

    @classmethod
    def _file_name(cls, name: str) -> str:
        for there, here in cls._renamed.items():
            name = name.replace(here, there)
        return name


def forecast_of(mean: Tensor, quantiles: Tensor, levels: list[float], channels: int, length: int) -> Forecast:
    """A forecast from those of series.

    Args:
        mean: [N, H] point forecasts.
        quantiles: [N, H, Q].
        levels: The Q levels.
        channels: Channels C of a window; N = B * C.
        length: Steps to keep.
    """
    mean, quantiles = mean.float()[:, :length], quantiles.float()[:, :length]
    found = {level: from_series(quantiles[..., i], channels) for i, level in enumerate(levels)}
    return Forecast(from_series(mean, channels), found)


def tuner_loss(mean: Tensor | None, quantiles: Tensor, target: Tensor, levels: list[float]) -> Tensor:
    """The loss of Google's fine-tuner for TimesFM, with its quantile loss switched on.

    The mean squared error of the mean, if there is one, plus for each level the mean of
    ``2 * max(q * (y - p), (q - 1) * (y - p))``.

    Args:
        mean: [N, H] or None.
        quantiles: [N, H, Q].
        target: [N, H].
        levels: The Q levels.

    Returns:
        A scalar.

    Source: https://github.com/google-research/timesfm, ``finetuning_torch.py``, ``TimesFMFinetuner._process_batch``.
    """
    level = torch.tensor(levels, dtype=target.dtype, device=target.device)
    error = target.unsqueeze(-1) - quantiles
    loss = 2 * torch.maximum(level * error, (level - 1) * error).mean(dim=(0, 1)).sum()
    return loss if mean is None else loss + F.mse_loss(mean, target)


def _check_quantiles(levels: list[float], path: Path) -> None:
    if levels != sorted(set(levels)) or not all(0 < level < 1 for level in levels) or not levels:
        raise CheckpointError(f"{str(path)!r}: quantiles must rise within (0, 1), got {levels}: replace it")
