"""What a task has to say about the evaluation of a model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch


class Evaluation(ABC):
    """Calls a model batch by batch and accumulates its errors.

    Args:
        data: The windows.
        part: ``"train"``, ``"val"`` or ``"test"``.
    """

    def __init__(self, data: Any, part: str) -> None:
        self.data = data
        self.part = part

    @classmethod
    @abstractmethod
    def check(cls, adapter: Any, data: Any) -> None:
        """See :func:`sff_fast.tasks.check`."""

    @abstractmethod
    def predict(self, adapter: Any, batch: Any, seed: int) -> Any:
        """Call the model.

        Args:
            adapter: The model.
            batch: A batch of the part, on the model's device.
            seed: For families that draw samples.

        Returns:
            What :meth:`update` takes.
        """

    @abstractmethod
    def update(self, output: Any, batch: Any) -> dict[str, torch.Tensor]:
        """Add a batch.

        Args:
            output: What :meth:`predict` returned.
            batch: The batch; its targets may be on any device.

        Returns:
            ``mse`` and ``mae`` of each of its windows, float64 [B] on the CPU.

        Raises:
            NotFiniteError: A value is NaN or infinite; nothing of the batch is added.
        """

    @abstractmethod
    def to_json(self) -> dict[str, Any]:
        """The errors, ``mse``, ``mae`` and ``rmse`` among them."""
