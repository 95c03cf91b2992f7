"""What the variants of Chronos share: their folders, windows of any number of channels, and long horizons."""

from __future__ import annotations

import contextlib
import copy
import os
import warnings
from abc import abstractmethod
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from sff_fast.adapters import _huggingface as huggingface
from sff_fast.adapters._series import to_series
from sff_fast.adapters.base import Adapter, Limits, as_dtype
from sff_fast.errors import CheckpointError, require


class ChronosAdapter(Adapter):
    """A model of the package chronos-forecasting: a folder with ``config.json`` and ``model.safetensors``.

    A horizon longer than the model's own is trained on in pieces of that length, each with the true values before it as
    its context; it is forecast as the package does.

    Source: Ansari et al., "Chronos: Learning the Language of Time Series", TMLR 2024, arXiv:2403.07815;
    https://github.com/amazon-science/chronos-forecasting

    Attributes:
        architecture: The class that a checkpoint's ``config.json`` names.
        pipeline: The package's pipeline that ``config.json`` names, or None for the default one.
    """

    family: ClassVar[str] = "chronos"
    module: ClassVar[str | None] = "chronos"
    package: ClassVar[str | None] = "chronos-forecasting"
    extra: ClassVar[str | None] = "chronos"
    architecture: ClassVar[str]
    pipeline: ClassVar[str | None] = None

    @classmethod
    def load(
        cls, path: str | os.PathLike[str], *, dropout: float | None = None, dtype: torch.dtype | str | None = None
    ) -> ChronosAdapter:
        """Load a folder with ``config.json`` and ``model.safetensors``. Nothing but local files is read.

        Args:
            path: The folder.
            dropout: Dropout of all layers in train mode. Default: the checkpoint's.
            dtype: dtype of the parameters. Default: that of the file, whatever ``config.json`` says.

        Returns:
            The adapter, its model in eval mode.

        Raises:
            ArgumentError: An option is not allowed.
            CheckpointError: The checkpoint is missing, damaged or of another family.
            MissingPackageError: chronos-forecasting is not installed.
        """
        dtype = as_dtype(dtype)
        huggingface.check_dropout(dropout)
        folder, config = huggingface.open_folder(path, cls.variant)
        if not cls._fits(config):
            huggingface.refuse(
                folder,
                cls.variant,
                f"config.json must hold a chronos_config and architectures [{cls.architecture!r}]",
                f"chronos_config {type(config.get('chronos_config')).__name__} and {config.get('architectures')!r}",
            )
        if dropout is not None:
            config["dropout_rate"] = dropout
        require("chronos", cls.extra, cls.package)
        model = huggingface.construct(partial(cls._make, config), folder / huggingface.CONFIG, cls.variant, cls.extra)
        cls._check(model, folder / huggingface.CONFIG)
        huggingface.load_all(model, folder, cls.variant, cls.extra)
        # Buffers too, as in the package, which makes them in the dtype of the model.
        model.to(next(model.parameters()).dtype if dtype is None else dtype)
        return cls(model.eval(), folder, partial(cls.load, folder, dropout=dropout, dtype=dtype))

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """Whether ``config.json`` names this variant's class."""
        return cls._fits(huggingface.config_of(path))

    @classmethod
    def tiny(cls, seed: int = 0) -> ChronosAdapter:
        """A random model of width 32, two layers and the published lengths of context."""
        require("chronos", cls.extra, cls.package)
        with huggingface.seeded_apart(seed):
            model = cls._make(copy.deepcopy(cls._tiny_config()))
        return cls(model.eval(), origin=partial(cls.tiny, seed))

    def build(self) -> nn.Module:
        """A new random model of the package's class with this one's configuration."""
        return type(self.model)(copy.deepcopy(self.model.config))

    @property
    def limits(self) -> Limits:
        """Contexts up to the model's own; forecasts of any length, since the package goes on from its own forecasts."""
        return Limits(max_context=self._settings["context_length"])

    def config(self) -> dict[str, Any]:
        """The family, the variant and the fields of the package's configuration."""
        return {"family": self.family, "variant": self.variant, **huggingface.describe(self.model)}

    def _write(self, folder: Path) -> None:
        huggingface.write(self.model, folder, self.architecture)

    @property
    def _settings(self) -> dict[str, Any]:
        """The part of the configuration that is Chronos's own."""
        return self.model.config.chronos_config

    @classmethod
    @abstractmethod
    def _make(cls, config: dict[str, Any]) -> Any:
        """A model of the package's class from the fields of a ``config.json``, drawn from torch's generator."""

    @classmethod
    @abstractmethod
    def _tiny_config(cls) -> dict[str, Any]:
        """The fields of the tiny model's ``config.json``."""

    @classmethod
    @abstractmethod
    def _check(cls, model: Any, path: Path) -> None:
        """Check what the package's constructor does not, with the configuration's path for the message."""

    @classmethod
    def _fits(cls, config: dict[str, Any]) -> bool:
        return isinstance(config.get("chronos_config"), dict) and huggingface.architecture_of(config) == cls.architecture


def check_lengths(model: Any, names: tuple[str, ...], path: Path) -> None:
    """Check that fields of a ``chronos_config`` are integers of at least 1.

    Raises:
        CheckpointError: One is not.
    """
    for name in names:
        value = model.config.chronos_config.get(name)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise CheckpointError(
                f"{str(path)!r}: chronos_config.{name} must be an integer of at least 1, got {value!r}: replace it"
            )


def check_quantiles(model: Any, path: Path) -> None:
    """Check the levels of a model with quantiles: the package takes the median for its point forecast.

    Raises:
        CheckpointError: They do not rise within (0, 1), or lack 0.5.
    """
    levels = model.config.chronos_config["quantiles"]
    if list(levels) != sorted(set(levels)) or not all(0 < level < 1 for level in levels) or 0.5 not in levels:
        raise CheckpointError(f"{str(path)!r}: chronos_config.quantiles must rise within (0, 1) and hold 0.5, got {levels}")


def pieces(context: Tensor, target: Tensor, longest: int) -> Iterator[tuple[Tensor, Tensor]]:
    """A window cut into pieces that a model can train on: (context [..., L + done], target [..., at most longest])."""
    for start in range(0, target.shape[-1], longest):
        yield torch.cat((context, target[..., :start]), dim=-1), target[..., start : start + longest]


def as_series(values: Tensor) -> Tensor:
    """[B, L, C] -> [B * C, L] as the package takes it: float32, and contiguous for the search of its bins."""
    return to_series(values.float()).contiguous()


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Keep the package's advice on long horizons, which the caller has chosen, out of the user's sight."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="We recommend keeping prediction length")
        yield
