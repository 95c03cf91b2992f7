"""The loss whose landscape is drawn: the mean training loss over fixed windows, the same at every point."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch

from sff_fast.adapters.base import evaluating
from sff_fast.data import AnomalyData, ForecastData
from sff_fast.training.interrupts import StopRequest
from sff_fast.training.runtime import seeded


def choose_windows(total: int, count: int, seed: int) -> torch.Tensor:
    """Numbers of the windows that the loss is measured on.

    Args:
        total: Windows that there are.
        count: How many to take; all of them where there are fewer.
        seed: Seed of the choice.

    Returns:
        int64, ascending, no window twice.
    """
    generator = torch.Generator().manual_seed(seed % (1 << 63))
    return torch.randperm(total, generator=generator)[:count].sort().values


class Objective:
    """The mean of the family's own training loss over some validation windows, in eval mode.

    Families whose loss draws random numbers draw the same ones at every call, so that two points differ by their weights
    alone; the global generators are as before afterwards.

    Args:
        adapter: The model, on its device.
        data: The windows.
        indices: Numbers of validation windows.
        batch_size: Windows at a time.
        seed: Seed of what the loss draws.
        stop: Looked at before every batch.
    """

    def __init__(
        self, adapter: Any, data: ForecastData | AnomalyData, indices: torch.Tensor, batch_size: int, seed: int, stop: StopRequest
    ) -> None:
        self.adapter = adapter
        self._device = next(adapter.model.parameters()).device
        self._batches = [data.val.batch(part) for part in indices.split(batch_size)]
        self._shares = [len(batch) / len(indices) for batch in self._batches]
        self._seed = seed
        self._stop = stop

    def value(self) -> float:
        """The loss at the model's present weights; may be NaN or infinite.

        Raises:
            Interrupted: A stop was asked for.
        """
        with self._settled(), torch.no_grad():
            return sum(share * float(loss()) for share, loss in self._terms())

    def terms(self) -> Iterator[tuple[float, torch.Tensor]]:
        """Share and differentiable loss of every batch; the loss is the sum of their products.

        Raises:
            Interrupted: A stop was asked for.
        """
        with self._settled():
            for share, loss in self._terms():
                yield share, loss()

    def _terms(self) -> Iterator[tuple[float, Callable[[], torch.Tensor]]]:
        for share, batch in zip(self._shares, self._batches, strict=True):
            self._stop.check()
            moved = batch.to(self._device)
            yield share, lambda moved=moved: self.adapter.loss(moved)

    @contextlib.contextmanager
    def _settled(self) -> Iterator[None]:
        with evaluating(self.adapter.model), seeded(self._seed, str(self._device)):
            yield
