"""What the variants of the family ``moirai`` share: the package uni2ts, its folders, and its packed sequences."""

from __future__ import annotations

import contextlib
import copy
import inspect
import math
import os
import sys
import types
import typing
import warnings
from abc import abstractmethod
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from sff_fast import files
from sff_fast.adapters._foreign import foreign
from sff_fast.adapters._mixed import as_input, refuse_float64
from sff_fast.adapters.base import Adapter, Limits, as_dtype, evaluating
from sff_fast.adapters.checkpoint import (
    existing_path,
    load_exactly,
    named_tensors,
    read_config,
    read_weights,
    unwrapped,
    weight_file,
)
from sff_fast.errors import ArgumentError, CheckpointError, require

_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
# Imported together, under one stand-in: see _annotation.
_MODULES = (
    "uni2ts.distribution",
    "uni2ts.loss.packed",
    "uni2ts.model.moirai",
    "uni2ts.model.moirai2",
    "uni2ts.model.moirai_moe",
)
# What a constructor raises for a configuration that makes no model.
_INVALID = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


class Packed(NamedTuple):
    """Windows as a sequence of patches: first every channel's context, then every channel's horizon.

    Args:
        target: float32 [B, T, P] values; a patch shorter than P is padded at its end.
        observed_mask: bool [B, T, P], False for padding.
        sample_id: int [B, T], 1 for data and 0 for a patch of padding.
        time_id: int [B, T] position of the patch in time.
        variate_id: int [B, T] channel.
        prediction_mask: bool [B, T], True for the horizon.
    """

    target: Tensor
    observed_mask: Tensor
    sample_id: Tensor
    time_id: Tensor
    variate_id: Tensor
    prediction_mask: Tensor


class MoiraiBase(Adapter):
    """One of Salesforce's MOIRAI models: the package's own class, its own packing, loss and sampler, its own files.

    A checkpoint is a folder with ``config.json`` and ``model.safetensors``, as ``save_pretrained`` of the package writes.
    Windows hold one channel, as the package's own ``wide`` data sets for fine-tuning; several channels in a window attend
    to each other. Where the context is no multiple of the patch size, it is padded on the left as the package does.

    Source: Woo et al., "Unified Training of Universal Time Series Forecasting Transformers", ICML 2024, arXiv:2402.02592;
    https://github.com/SalesforceAIResearch/uni2ts (Apache-2.0).
    """

    family: ClassVar[str] = "moirai"
    module: ClassVar[str | None] = "uni2ts"
    package: ClassVar[str | None] = "timecopilot-uni2ts"
    extra: ClassVar[str | None] = "moirai"

    #: Where the package keeps the class, and the one that forecasts with it.
    _source: ClassVar[tuple[str, str, str]]
    #: Configuration of the small model.
    _tiny: ClassVar[dict[str, Any]]
    #: Part of the names of the parameters that linear probing trains.
    _head: ClassVar[str]

    def __init__(
        self, model: nn.Module, source: Path | None = None, origin: Any = None, config: dict[str, Any] | None = None
    ) -> None:
        super().__init__(model, source, origin)
        self._config = config or {}

    # --- making -----------------------------------------------------------------------------------------------------

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """Whether ``config.json`` has the fields of this variant and none of the others."""
        if not (path / "config.json").is_file():
            return False
        try:
            return _kind(read_config(path / "config.json")) == cls.variant
        except CheckpointError:
            return False

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, dtype: torch.dtype | str | None = None) -> Adapter:
        """Load a folder with ``config.json`` and ``model.safetensors``. Nothing but local files is read.

        Args:
            path: The folder.
            dtype: dtype of the parameters. Default: that of the file.

        Returns:
            The adapter, its model in eval mode.

        Raises:
            ArgumentError: An option is not allowed.
            CheckpointError: The checkpoint is missing, damaged or of another family.
            MissingPackageError: timecopilot-uni2ts is not installed.
        """
        model, source, config = cls._read(path, dtype)
        return cls(model, source, partial(cls.load, source, dtype=dtype), config)

    @classmethod
    def _read(cls, path: Any, dtype: Any) -> tuple[nn.Module, Path, dict[str, Any]]:
        """The model of a folder, in eval mode, the folder, and its configuration.

        Raises:
            ArgumentError: The dtype is not allowed.
            CheckpointError: The checkpoint is missing, damaged or of another family.
            MissingPackageError: timecopilot-uni2ts is not installed.
        """
        dtype = as_dtype(dtype)
        refuse_float64(dtype, cls.variant)
        source = existing_path(path)
        if not source.is_dir() or not (source / "config.json").exists():
            raise foreign(source, cls.variant, "it must be a folder with config.json and model.safetensors")
        config = read_config(source / "config.json")
        kind = _kind(config)
        if kind != cls.variant:
            problem = f"config.json must describe a {cls.variant} model, got "
            raise foreign(source, cls.variant, problem + (f"one of {kind}" if kind else "fields of none of the family"))
        weights = weight_file(source, _WEIGHTS)
        state = named_tensors(unwrapped(read_weights(weights))[0], weights)
        model = cls._construct(config, source / "config.json")
        load_exactly(model, state, weights, cls.variant)
        return model.to(dtype).eval(), source, config

    @classmethod
    def _construct(cls, config: dict[str, Any], path: Path) -> nn.Module:
        """A model of this configuration with random weights, without a touch to the global generator."""
        sizes = config.get("patch_sizes", [1])
        if not isinstance(sizes, list) or not sizes or not all(type(size) is int and size > 0 for size in sizes):
            raise CheckpointError(f"{str(path)!r}: patch_sizes must be a list of positive integers, got {sizes!r}: replace it")
        levels = config.get("quantile_levels", [0.5])
        if not isinstance(levels, list) or 0.5 not in levels:
            raise CheckpointError(f"{str(path)!r}: quantile_levels must hold 0.5, the point forecast, got {levels!r}: replace it")
        invalid = (*_INVALID, require("hydra.errors", cls.extra, cls.package).HydraException)
        try:
            with torch.random.fork_rng(devices=[]):
                return cls._instantiate(config)
        except invalid as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise CheckpointError(f"{str(path)!r} describes no valid {cls.variant} model ({reason}): replace it") from error

    @classmethod
    def _instantiate(cls, config: dict[str, Any]) -> nn.Module:
        """The package's class from the fields of a ``config.json``, as its ``from_pretrained`` reads them."""
        module, name, _ = cls._source
        upstream = uni2ts(f"{module}.module")
        make = getattr(upstream, name)
        known = inspect.signature(make).parameters
        # A deep copy: the model must not share lists with the configuration that will be saved.
        fields = copy.deepcopy({key: value for key, value in config.items() if key in known})
        if "distr_output" in fields:
            fields["distr_output"] = upstream.decode_distr_output(fields["distr_output"])
        return make(**fields)

    @classmethod
    def _make_tiny(cls, seed: int) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return cls._instantiate(cls._tiny).eval()

    def build(self) -> nn.Module:
        """A new random model of the package's class with this one's configuration."""
        return self._instantiate(self._config)

    # --- description ------------------------------------------------------------------------------------------------

    @property
    @abstractmethod
    def patch_size(self) -> int:
        """Values in a patch."""

    @property
    def _least_patch(self) -> int:
        """Values in the shortest patch that may be used."""
        return self.patch_size

    @property
    def limits(self) -> Limits:
        """Context and horizon of ``max_seq_len`` patches together."""
        most = (self.model.max_seq_len - 1) * self._least_patch
        return Limits(max_context=most, max_prediction=most)

    def check_lengths(self, context_length: int, prediction_length: int) -> None:
        """Check two lengths against :attr:`limits`, and that their patches together are at most ``max_seq_len``.

        Raises:
            ArgumentError: They are not.
        """
        super().check_lengths(context_length, prediction_length)
        patch, most = self._least_patch, self.model.max_seq_len
        patches = math.ceil(context_length / patch) + math.ceil(prediction_length / patch)
        if patches > most:
            raise ArgumentError(
                f"context_length and prediction_length must make at most {most} patches of {patch} for this {self.variant} "
                f"model, got {patches} of {context_length} and {prediction_length}: shorten the context"
            )

    def head_parameters(self) -> list[tuple[str, nn.Parameter]]:
        """What projects representations to the parameters of the forecast.

        Source: ``finetune_pattern="head_only"`` of the package's ``MoiraiFinetune`` leaves ``param_proj`` alone trainable;
        MOIRAI-2 has ``out_proj`` in its place.
        """
        return [(name, parameter) for name, parameter in self.model.named_parameters() if name.startswith(self._head)]

    def config(self) -> dict[str, Any]:
        """The family and every field of the published configuration."""
        return {"family": self.family, "variant": self.variant, **copy.deepcopy(self._config)}

    def _write(self, folder: Path) -> None:
        """Write ``config.json`` and ``model.safetensors`` just as the package's ``save_pretrained`` does."""
        files.write_json(folder / "config.json", dict(sorted(self._config.items())))
        files.save_safetensors(folder / "model.safetensors", self.model.state_dict())

    # --- packing ----------------------------------------------------------------------------------------------------

    def _forecaster(self, context: Tensor, prediction_length: int, **options: Any) -> Any:
        """The package's forecaster around this model, for windows of these sizes."""
        module, _, name = self._source
        make = getattr(uni2ts(module), name)
        with evaluating(self.model):  # One of them puts the model in eval mode.
            forecaster = make(
                prediction_length=prediction_length,
                target_dim=context.shape[2],
                feat_dynamic_real_dim=0,
                past_feat_dynamic_real_dim=0,
                context_length=context.shape[1],
                module=self.model,
                **options,
            )
        return forecaster.to(context.device)

    def _past(self, context: Tensor) -> dict[str, Tensor]:
        """The inputs of the package's forecasters, where every value is observed."""
        return {
            "past_target": as_input(context),
            "past_observed_target": torch.ones_like(context, dtype=torch.bool),
            "past_is_pad": torch.zeros(context.shape[:2], dtype=torch.bool, device=context.device),
        }

    def _pack(self, forecaster: Any, context: Tensor, target: Tensor) -> Packed:
        """Context and horizon in patches, by the forecaster's own packing."""
        return Packed(
            *forecaster._convert(
                self.patch_size,
                **self._past(context),
                future_target=as_input(target),
                future_observed_target=torch.ones_like(target, dtype=torch.bool),
                future_is_pad=torch.zeros(target.shape[:2], dtype=torch.long, device=target.device),
            )
        )

    def _grid(self, context: Tensor, target: Tensor) -> tuple[Tensor, Tensor, int]:
        """Where the patches lie in :class:`Packed`.

        Returns:
            Index [C] of each channel's last patch of context, index [C, N] of its N patches of the horizon, and N.
        """
        channels = torch.arange(context.shape[2], device=context.device)
        past, future = (math.ceil(values.shape[1] / self.patch_size) for values in (context, target))
        last = channels * past + past - 1
        horizon = len(channels) * past + channels[:, None] * future + torch.arange(future, device=context.device)
        return last, horizon, future


def uni2ts(module: str) -> types.ModuleType:
    """Import a module of uni2ts.

    Raises:
        MissingPackageError: It, or something that it imports, is not installed.
    """
    if not all(name in sys.modules for name in (*_MODULES, module)):
        with _annotation(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Of gluonts, which advises other JSON packages.
            for name in _MODULES:
                require(name, MoiraiBase.extra, MoiraiBase.package)
    return require(module, MoiraiBase.extra, MoiraiBase.package)


@contextlib.contextmanager
def _annotation() -> Iterator[None]:
    """A stand-in for ``jaxtyping.PyTree`` while uni2ts is imported, gone afterwards; a real one stays.

    uni2ts needs it in annotations alone, but looking it up imports jax, 200 MB that nothing else here uses.
    """
    jaxtyping = require("jaxtyping", MoiraiBase.extra, MoiraiBase.package)
    try:
        jaxtyping.PyTree  # noqa: B018
    except (AttributeError, ImportError):
        jaxtyping.PyTree = _PyTree
        try:
            yield
        finally:
            del jaxtyping.PyTree
    else:
        yield


class _PyTree:
    def __class_getitem__(cls, item: Any) -> Any:
        return typing.Any


def _kind(config: dict[str, Any]) -> str | None:
    """Which variant a ``config.json`` describes, by the fields that only that one has."""
    fields = config.keys()
    if not {"d_model", "num_layers", "max_seq_len"} <= fields:
        return None
    if {"distr_output", "patch_sizes"} <= fields:
        return "moirai-moe" if "d_ff" in fields else "moirai"
    return "moirai-2" if {"d_ff", "patch_size", "num_predict_token"} <= fields else None


@contextlib.contextmanager
def float32_outputs(projection: nn.Module) -> Iterator[None]:
    """Let the linear layers of a projection return float32, so that distributions are computed in it."""

    def widen(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        return output.float()

    layers = [layer for layer in projection.modules() if next(layer.parameters(recurse=False), None) is not None]
    hooks = [layer.register_forward_hook(widen) for layer in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
