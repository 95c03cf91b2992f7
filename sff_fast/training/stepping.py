"""One optimizer step on a batch of windows: in micro-batches, clipped, with gradients kept or freed."""

from __future__ import annotations

import contextlib
import math
from typing import Any

import torch

from ..data import ForecastData
from ..distributed.parallel import Parallel, Part
from ..errors import SffFastError
from ..optim import FusedAdamW, make_optimizer
from .config import Settings
from .runtime import seed_all
from .strategies import Method


class NotFiniteLossError(SffFastError):
    """The training loss is NaN or infinite; nothing was stepped.

    Attributes:
        loss: The loss.
    """

    def __init__(self, loss: float) -> None:
        super().__init__(f"the training loss is {loss}")
        self.loss = loss


def optimizer_for(settings: Settings, parameters: dict[str, torch.nn.Parameter]) -> torch.optim.Optimizer:
    """The optimizer of a run.

    Args:
        settings: The settings.
        parameters: Name in the model to parameter to train.
    """
    options: dict[str, Any] = {}
    if settings.precision == "bf16-sr":
        options["stochastic_rounding"] = True
    if settings.release_gradients:
        options["release_gradients"] = True
    return make_optimizer(
        settings.optimizer,
        parameters.items(),
        settings.lr,
        settings.weight_decay,
        settings.optimizer_state,
        seed=settings.seed,
        max_norm=settings.grad_clip,
        **options,
    )


class Stepper:
    """Steps of one optimizer.

    Args:
        adapter: The adapter.
        data: The windows.
        settings: The settings.
        parameters: Name in the model to parameter to train.
        parallel: The processes, each of which takes its part of a batch. Default: this one alone.
        method: What the strategy does beside the loop; None for nothing.
    """

    def __init__(
        self,
        adapter: Any,
        data: ForecastData,
        settings: Settings,
        parameters: dict[str, torch.nn.Parameter],
        parallel: Parallel | None = None,
        method: Method | None = None,
    ) -> None:
        self.optimizer = optimizer_for(settings, parameters)
        self._adapter, self._data, self._settings = adapter, data, settings
        self._parallel = Parallel() if parallel is None else parallel
        self._method = Method(adapter, settings) if method is None else method
        self._parameters = list(parameters.values())
        self._ours = isinstance(self.optimizer, FusedAdamW)

    def step(self, indices: torch.Tensor, lr: float, number: int = 0) -> float:
        """One step.

        Args:
            indices: The windows of the batch, over all processes.
            lr: Learning rate.
            number: Steps of the run before this one: decides what a strategy draws, and with several processes seeds dropout.

        Returns:
            The batch's mean training loss.

        Raises:
            NotFiniteLossError: The loss is NaN or infinite; the gradients are dropped.
        """
        optimizer, settings = self.optimizer, self._settings
        for group in optimizer.param_groups:
            group["lr"] = lr
        self._number = number
        try:
            value = self._method.passes(lambda: self._passes(indices), number + 1)
        except NotFiniteLossError:
            optimizer.zero_grad(set_to_none=True)
            raise
        if settings.grad_clip is not None and not self._ours:
            torch.nn.utils.clip_grad_norm_(self._parameters, settings.grad_clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        self._method.stepped()
        return value

    def close(self) -> None:
        """Take off the parameters what the optimizer has put on them."""
        if self._ours:
            self.optimizer.stop_releasing()

    def _passes(self, indices: torch.Tensor) -> float:
        parts = self._parallel.parts(indices, self._settings.micro_batch)
        return self._whole(parts[0]) if len(parts) == 1 else self._accumulated(parts)

    def _loss(self, part: Part) -> tuple[torch.Tensor, float]:
        """The loss to go back from, and what the part, over all processes, adds to the batch's mean loss."""
        group, settings = self._parallel.group, self._settings
        if group.size > 1:
            # Each part has random numbers of its own, whatever came before: they are in no save.
            seed_all(_mixed(settings.seed, self._number, group.rank, part.number), settings.device)
        loss = self._parallel.loss(self._adapter, self._data.train.batch(part.indices).to(settings.device))
        value = group.sum(loss.item() * part.share)
        if not math.isfinite(value):
            raise NotFiniteLossError(value)
        return loss if part.scale == 1 else loss * part.scale, value

    def _whole(self, part: Part) -> float:
        if not (self._settings.release_gradients and self._settings.grad_clip is not None):
            loss, value = self._loss(part)
            loss.backward()
            return value
        # Two forward passes: what the first one leaves in the model's buffers must not reach the second one.
        before = {name: buffer.detach().clone() for name, buffer in self._adapter.model.named_buffers()}
        passes, value = 0, 0.0

        def closure() -> torch.Tensor:
            nonlocal passes, value
            passes += 1
            if passes > 1:
                for name, buffer in self._adapter.model.named_buffers():
                    if name in before:
                        buffer.copy_(before[name])
            loss, value = self._loss(part)
            return loss

        self.optimizer.backward(closure)
        return value

    def _accumulated(self, parts: list[Part]) -> float:
        """Backward passes of a batch's parts, each with its share of the windows; the gradients are whole afterwards."""
        total = 0.0
        keeping = self.optimizer.accumulating() if self._settings.release_gradients else contextlib.nullcontext()
        with keeping:
            for part in parts:
                with self._parallel.accumulating(more=part is not parts[-1]):
                    loss, value = self._loss(part)
                    loss.backward()
                total += value
        return total


def _mixed(*numbers: int) -> int:
    """One seed of several numbers."""
    mixed = 0
    for number in numbers:
        mixed = (mixed * 0x9E3779B97F4A7C15 + number + 1) % 2**63
    return mixed
