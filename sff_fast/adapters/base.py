"""The contract between a model family and everything that trains, evaluates or saves it."""

from __future__ import annotations

import contextlib
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from sff_fast import files
from sff_fast.adapters import provenance
from sff_fast.adapters.checkpoint import are_pickles_allowed, pickles_allowed
from sff_fast.data.anomaly import SeriesBatch
from sff_fast.data.imputation import MaskedBatch
from sff_fast.errors import ArgumentError
from sff_fast.resolve import register_planner

if TYPE_CHECKING:
    from sff_fast.data import Batch
    from sff_fast.plan import InitPlan

_DTYPES = {
    "float32": torch.float32,
    "float64": torch.float64,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}


@dataclass(frozen=True)
class Forecast:
    """A forecast in the scale of the context that it was made from.

    Args:
        mean: [B, H, C] the point forecast (whatever point the family's loss aims at).
        quantiles: Level in (0, 1) to [B, H, C], or None where the family has none.
        samples: [B, S, H, C] sample paths, or None where the family draws none.
    """

    mean: Tensor
    quantiles: dict[float, Tensor] | None = None
    samples: Tensor | None = None

    def to(self, device: torch.device | str) -> Forecast:
        """The forecast on a device."""
        quantiles = None if self.quantiles is None else {level: values.to(device) for level, values in self.quantiles.items()}
        return Forecast(self.mean.to(device), quantiles, None if self.samples is None else self.samples.to(device))


@dataclass(frozen=True)
class Limits:
    """Lengths that a model accepts, in time steps.

    Args:
        min_context: Shortest context.
        max_context: Longest context, or None for any.
        multiple_of: The context must be a multiple of this.
        max_prediction: Longest forecast, or None for any.
    """

    min_context: int = 1
    max_context: int | None = None
    multiple_of: int = 1
    max_prediction: int | None = None


class Adapter(ABC):
    """One loaded model of a family.

    ``loss`` and ``forecast`` take standardised data of any scale; a family that normalises each window does so itself.
    A subclass sets the class attributes, and implements the abstract methods and ``_loss`` and ``_forecast``; one that
    can do more than forecasting also implements ``_impute`` and ``_imputation_loss``, ``_reconstruct`` and ``_anomaly_loss``.

    Attributes:
        family: Name of the family.
        variant: Name of this architecture, unique among all families; the family's name where there is one only.
        default_variant: Whether it stands for its family where nothing else decides; true for exactly one variant.
        module: Module that the family needs, or None; it is imported when a model is loaded or built.
        package: Name on PyPI of the package that brings ``module``, or None.
        extra: The extra of sff_fast that installs ``package``, or None.
        tasks: What it can be trained for, of ``"forecast"``, ``"imputation"``, ``"anomaly"``.
        channel_independent: Whether a window holds one channel (the family's own way of fine-tuning) or all of them.
        default_alpha: Share of the pre-trained weights in SFF.
        default_lr: Learning rate for full fine-tuning with Adam.
        default_precision: Precision for fine-tuning, such as ``"fp32"``.
        default_num_samples: Sample paths in a forecast, or None for a family that draws none.
        marks: Parts of tensor names that only this family's checkpoints have; they tell whose a foreign checkpoint is.
        model: The model. It stays in the mode (train or eval) that the caller puts it in.
        source: Where it was loaded from, or None for a model made from random numbers.
    """

    family: ClassVar[str]
    variant: ClassVar[str]
    default_variant: ClassVar[bool] = True
    module: ClassVar[str | None] = None
    package: ClassVar[str | None] = None
    extra: ClassVar[str | None] = None
    tasks: ClassVar[frozenset[str]] = frozenset({"forecast"})
    channel_independent: ClassVar[bool] = True
    default_alpha: ClassVar[float] = 0.7
    default_lr: ClassVar[float] = 3e-5
    default_precision: ClassVar[str] = "fp32"
    default_num_samples: ClassVar[int | None] = None
    marks: ClassVar[tuple[str, ...]] = ()

    def __init__(self, model: nn.Module, source: Path | None = None, origin: Callable[[], Adapter] | None = None) -> None:
        """Wrap a model.

        Args:
            model: The model.
            source: Where it was loaded from.
            origin: Makes a fresh adapter just like this one; :meth:`reload` calls it.
        """
        self.model = model
        self.source = source
        provenance.restore(model, source)
        self._origin = origin
        self._allow_pickle = are_pickles_allowed()
        self._plan: InitPlan | None = None
        register_planner(model, self.plan)

    # --- making -----------------------------------------------------------------------------------------------------

    @classmethod
    @abstractmethod
    def load(cls, path: str | os.PathLike[str], **options: Any) -> Adapter:
        """Load a model from a local file or folder, in eval mode. Never reaches the network.

        Args:
            path: The file or folder.
            **options: The family's own, listed by its ``load``.

        Raises:
            CheckpointError: The checkpoint is missing, damaged or of another family.
            MissingPackageError: The family's package is not installed.
        """

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """Whether a file or folder looks like a checkpoint of this variant, rather than of another one of its family.

        Args:
            path: What is there; it may be damaged or belong to another family altogether.

        Returns:
            False by default: the default variant is asked to load what no other one recognises, and says what is wrong.
        """
        return False

    @classmethod
    @abstractmethod
    def tiny(cls, seed: int = 0) -> Adapter:
        """A small random model of this family, for tests and trials; the global generators are left alone."""

    @abstractmethod
    def build(self) -> nn.Module:
        """A new random model with this one's configuration, drawn by its own constructor from torch's generator."""

    def reload(self) -> Adapter:
        """A fresh, pristine copy from where this one came.

        Raises:
            ArgumentError: The adapter was made around a model in memory, so there is nowhere to read it from again.
        """
        if self._origin is None:
            raise ArgumentError(
                f"this {self.variant} model was made in memory and cannot be loaded again: "
                "save it, then load it with sff_fast.load"
            )
        with pickles_allowed(self._allow_pickle):
            return self._origin()

    def plan(self) -> InitPlan:
        """The distributions that :meth:`build` draws every parameter from; traced once."""
        if self._plan is None:
            from sff_fast.tracing import trace

            self._plan = trace(self.build)
        return self._plan

    # --- training and forecasting -----------------------------------------------------------------------------------

    def loss(self, batch: Batch | MaskedBatch | SeriesBatch) -> Tensor:
        """Mean training loss of a batch, differentiable; the model's mode decides about dropout.

        The batch tells the task: :class:`sff_fast.data.MaskedBatch` is one of :meth:`imputation_loss`,
        :class:`sff_fast.data.SeriesBatch` one of :meth:`anomaly_loss`.

        Args:
            batch: ``context`` [B, L, C] and ``target`` [B, H, C], on any device; or a batch of another task.

        Returns:
            A scalar.

        Raises:
            ArgumentError: The shapes or lengths do not fit the model.
        """
        if isinstance(batch, MaskedBatch):
            return self.imputation_loss(batch.values, batch.mask)
        if isinstance(batch, SeriesBatch):
            return self.anomaly_loss(batch.values)
        context, target = batch.context, batch.target
        self._check_context(context, target.shape[1] if target.dim() == 3 else 0)
        if target.dim() != 3 or target.shape[0] != context.shape[0] or target.shape[2] != context.shape[2]:
            raise ArgumentError(
                f"{self.variant}: target must be [batch, time, channel] as context {tuple(context.shape)} is, "
                f"got {tuple(target.shape)}"
            )
        return self._loss(self._place(context), self._place(target))

    def forecast(self, context: Tensor, prediction_length: int, *, seed: int = 0, num_samples: int | None = None) -> Forecast:
        """Forecast in eval mode and without gradients; the model's mode is restored afterwards.

        Args:
            context: [B, L, C] floating point, on any device.
            prediction_length: Steps H to forecast.
            seed: Seed of torch's generators for families that draw sample paths; the generators are left as found.
            num_samples: How many sample paths they draw. Default: ``default_num_samples``.

        Returns:
            The forecast, on the model's device, at least float32.

        Raises:
            ArgumentError: The shape or the lengths do not fit the model, or it draws no samples.
        """
        self._check_context(context, prediction_length)
        if self.default_num_samples is None:
            if num_samples is not None:
                raise ArgumentError(f"{self.variant} draws no sample paths: leave out num_samples, got {num_samples!r}")
        elif num_samples is None:
            num_samples = self.default_num_samples
        elif not isinstance(num_samples, int) or isinstance(num_samples, bool) or num_samples < 1:
            raise ArgumentError(f"num_samples must be an integer of at least 1, got {num_samples!r}")
        with self._inference(seed):
            return self._forecast(self._place(context), prediction_length, num_samples)

    def impute(self, values: Tensor, mask: Tensor, *, seed: int = 0) -> Tensor:
        """Fill in hidden points, in eval mode and without gradients.

        Args:
            values: [B, L, C] floating point, on any device. What the mask hides is not read.
            mask: bool [B, L, C], True where a point is observed.
            seed: Seed of torch's generators; they are left as found.

        Returns:
            [B, L, C] the model's values at every point, observed ones too, on the model's device, at least float32.

        Raises:
            ArgumentError: The family cannot impute, or the shapes or the length do not fit the model.
        """
        self._check_masked(values, mask)
        with self._inference(seed):
            return self._impute(self._hidden(values, mask), self._place(mask))

    def imputation_loss(self, values: Tensor, mask: Tensor) -> Tensor:
        """Mean squared error over the hidden points, differentiable; the model's mode decides about dropout.

        Args:
            values: [B, L, C] the true values, on any device; the model sees none that is hidden.
            mask: bool [B, L, C], True where a point is observed; at least one is hidden.

        Returns:
            A scalar.

        Raises:
            ArgumentError: The family cannot impute, nothing is hidden, or the shapes or the length do not fit the model.
        """
        self._check_masked(values, mask)
        if bool(mask.all()):
            raise ArgumentError(f"{self.variant}: mask hides no point: set it to False where the loss is to be measured")
        return self._imputation_loss(self._place(values), self._hidden(values, mask), self._place(mask))

    def reconstruct(self, values: Tensor, *, seed: int = 0) -> Tensor:
        """What the model expects at every point of a window, in eval mode and without gradients.

        Args:
            values: [B, L, C] floating point, on any device.
            seed: Seed of torch's generators; they are left as found.

        Returns:
            [B, L, C], NaN where the family forms no expectation (the first patch of a model that predicts the next one),
            on the model's device, at least float32.

        Raises:
            ArgumentError: The family cannot detect anomalies, or the shape or the length do not fit the model.
        """
        self._check_window("anomaly", values)
        with self._inference(seed):
            return self._reconstruct(self._place(values))

    def anomaly_loss(self, values: Tensor) -> Tensor:
        """Mean squared error between values and what is expected of them, differentiable.

        Args:
            values: [B, L, C] floating point, on any device.

        Returns:
            A scalar.

        Raises:
            ArgumentError: The family cannot detect anomalies, or the shape or the length do not fit the model.
        """
        self._check_window("anomaly", values)
        return self._anomaly_loss(self._place(values))

    @abstractmethod
    def _loss(self, context: Tensor, target: Tensor) -> Tensor: ...

    @abstractmethod
    def _forecast(self, context: Tensor, prediction_length: int, num_samples: int | None) -> Forecast: ...

    def _impute(self, values: Tensor, mask: Tensor) -> Tensor:
        """The model's values at every point; hidden ``values`` are zero."""
        raise NotImplementedError

    def _imputation_loss(self, truth: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        """By default the error of :meth:`_impute` over the hidden points; hidden ``values`` are zero, ``truth`` has all."""
        return (self._impute(values, mask) - truth)[~mask].square().mean()

    def _reconstruct(self, values: Tensor) -> Tensor:
        """What is expected at every point."""
        raise NotImplementedError

    def _anomaly_loss(self, values: Tensor) -> Tensor:
        """By default the error of :meth:`_reconstruct` where it expects anything."""
        expected = self._reconstruct(values)
        known = ~expected.isnan()
        return (expected[known] - values[known]).square().mean()

    # --- description ------------------------------------------------------------------------------------------------

    @property
    @abstractmethod
    def limits(self) -> Limits:
        """The lengths that this model accepts."""

    def limits_for(self, task: str) -> Limits:
        """The lengths that this model accepts for a task.

        Args:
            task: One of ``tasks``.
        """
        return self.limits

    @abstractmethod
    def head_parameters(self) -> list[tuple[str, nn.Parameter]]:
        """What linear probing trains, as (name in the model, parameter)."""

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """What identifies the architecture, fit for JSON."""

    def save(self, directory: str | os.PathLike[str], overwrite: bool = False) -> None:
        """Write the model in the family's published layout, so that it is complete or not there.

        A model that was smoothed has the file ``sff_fast.json`` beside its weights, which says with what seed, alpha and
        plan; loading it here makes smoothing it again an error, other packages do not look at it.

        Args:
            directory: The folder to make; the one above must exist.
            overwrite: Whether a folder of this name may be replaced.

        Raises:
            OutputError: The folder exists already or cannot be written.
        """
        with files.atomic_directory(directory, replace=overwrite) as folder:
            self._write(folder)
            provenance.record(self.model, folder)

    @abstractmethod
    def _write(self, folder: Path) -> None:
        """Write the published files into a folder that is there and empty."""

    def check_lengths(self, context_length: int, prediction_length: int) -> None:
        """Check two lengths against :attr:`limits`.

        Args:
            context_length: Steps of context.
            prediction_length: Steps to forecast.

        Raises:
            ArgumentError: A length is not accepted; the message names those that are.
        """
        for name, value in (("context_length", context_length), ("prediction_length", prediction_length)):
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ArgumentError(f"{name} must be an integer of at least 1, got {value!r}")
        limits = self.limits
        self._check_length("context_length", context_length, limits)
        if limits.max_prediction is not None and prediction_length > limits.max_prediction:
            raise ArgumentError(
                f"prediction_length must be at most {limits.max_prediction} for this {self.variant} model, "
                f"got {prediction_length}"
            )

    def check_task(self, task: str, length: int | None = None) -> None:
        """Check that the model can do a task, with windows of a length.

        Args:
            task: ``"imputation"`` or ``"anomaly"``.
            length: Rows of a window. Default None: any.

        Raises:
            ArgumentError: It cannot.
        """
        if task not in self.tasks:
            raise ArgumentError(
                f"{self.variant} cannot do {task}: it can do {', '.join(sorted(self.tasks))}; "
                "sff_fast.families() lists what the others can"
            )
        if length is not None:
            self._check_length("the length of a window", length, self.limits_for(task))

    # --- for subclasses ---------------------------------------------------------------------------------------------

    def _check_context(self, context: Tensor, prediction_length: int) -> None:
        if context.dim() != 3 or not context.is_floating_point():
            raise ArgumentError(
                f"{self.variant}: context must be a floating-point tensor [batch, time, channel], "
                f"got {context.dtype} of shape {tuple(context.shape)}"
            )
        self.check_lengths(context.shape[1], prediction_length)

    def _check_window(self, task: str, values: Tensor) -> None:
        self.check_task(task)
        if values.dim() != 3 or not values.is_floating_point():
            raise ArgumentError(
                f"{self.variant}: values must be a floating-point tensor [batch, time, channel], "
                f"got {values.dtype} of shape {tuple(values.shape)}"
            )
        self.check_task(task, values.shape[1])

    def _check_masked(self, values: Tensor, mask: Tensor) -> None:
        self._check_window("imputation", values)
        if mask.dtype != torch.bool or mask.shape != values.shape:
            raise ArgumentError(
                f"{self.variant}: mask must be a bool tensor of the shape {tuple(values.shape)} of the values, "
                f"got {mask.dtype} of shape {tuple(mask.shape)}"
            )

    def _check_length(self, name: str, length: int, limits: Limits) -> None:
        least, most, step = limits.min_context, limits.max_context, limits.multiple_of
        if least == most != length:
            raise ArgumentError(f"{name} must be {least}, which this {self.variant} model was made for, got {length}")
        if length < least:
            raise ArgumentError(f"{name} must be at least {least} for this {self.variant} model, got {length}")
        if most is not None and length > most:
            raise ArgumentError(f"{name} must be at most {most} for this {self.variant} model, got {length}")
        if length % step:
            below, above = length // step * step, -(-length // step) * step
            choice = f"{below} or {above}" if most is None or above <= most else f"{below}"
            raise ArgumentError(f"{name} must be a multiple of {step} for this {self.variant} model, got {length}: use {choice}")

    def _hidden(self, values: Tensor, mask: Tensor) -> Tensor:
        """The values with zero wherever the mask hides them: not even NaN gets through."""
        return self._place(torch.where(mask, values, torch.zeros((), dtype=values.dtype, device=values.device)))

    @contextlib.contextmanager
    def _inference(self, seed: int) -> Iterator[None]:
        """Eval mode, no gradients, and torch's generators seeded; all as before when the block ends."""
        device = next(self.model.parameters()).device
        accelerators = [] if device.type == "cpu" else [device]
        kind = "cuda" if device.type == "cpu" else device.type
        with evaluating(self.model), torch.no_grad(), torch.random.fork_rng(devices=accelerators, device_type=kind):
            torch.manual_seed(seed)
            yield

    def _place(self, tensor: Tensor) -> Tensor:
        return tensor.to(next(self.model.parameters()).device, non_blocking=True)


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model in eval mode for a while; afterwards every module has the mode that it had."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def as_dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    """A floating-point dtype from its name, such as ``"bfloat16"``; None and dtypes pass.

    Raises:
        ArgumentError: It is no dtype that models are kept in.
    """
    if dtype is None or dtype in _DTYPES.values():
        return dtype
    if isinstance(dtype, str) and dtype.removeprefix("torch.") in _DTYPES:
        return _DTYPES[dtype.removeprefix("torch.")]
    raise ArgumentError(f"dtype must be one of {', '.join(_DTYPES)}, got {dtype!r}")
