"""Standardise channels with the train part's mean and standard deviation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import torch

from ..errors import DataError

ArrayOrTensor = TypeVar("ArrayOrTensor", np.ndarray, torch.Tensor)


class Scaler:
    """``(x - mean) / std`` for each channel, both float64.

    Args:
        mean: One for each channel.
        std: Population standard deviation of each channel, positive.
    """

    def __init__(self, mean: Sequence[float] | np.ndarray, std: Sequence[float] | np.ndarray) -> None:
        self.mean: np.ndarray = np.array(mean, dtype=np.float64)
        self.std: np.ndarray = np.array(std, dtype=np.float64)
        if self.mean.ndim != 1 or self.mean.shape != self.std.shape:
            raise DataError(
                f"a scaler needs one mean and one std for each channel, got shapes {self.mean.shape} and {self.std.shape}"
            )
        if not (np.isfinite(self.mean).all() and np.isfinite(self.std).all() and (self.std > 0).all()):
            raise DataError("a scaler needs finite means and positive standard deviations: is a channel constant?")

    @classmethod
    def fit(cls, values: np.ndarray) -> Scaler:
        """Mean and population standard deviation (divided by T, not T - 1) of ``values`` [T, C]."""
        channels = np.ascontiguousarray(np.asarray(values, dtype=np.float64).T)  # contiguous rows: pairwise summation
        return cls(channels.mean(axis=1), channels.std(axis=1))

    def transform(self, values: np.ndarray) -> np.ndarray:
        """Standardise ``values`` [..., C]; float64."""
        return (np.asarray(values, dtype=np.float64) - self.mean) / self.std

    def inverse(self, values: ArrayOrTensor, channels: int | Sequence[int] | torch.Tensor | None = None) -> ArrayOrTensor:
        """Back to the data's own units, in float64.

        Args:
            values: [..., C] in the order of the columns; or, with ``channels``, [B, ..., 1].
            channels: The channel of all values (int), or of each item of the batch (B of them).

        Returns:
            float64, an array or tensor like ``values``.
        """
        array = values.detach().to("cpu", torch.float64).numpy() if isinstance(values, torch.Tensor) else values
        mean, std = self.mean, self.std
        if isinstance(channels, (int, np.integer)):
            mean, std = mean[channels], std[channels]
        elif channels is not None:
            index = np.asarray(channels, dtype=np.int64)
            shape = (len(index),) + (1,) * (array.ndim - 1)
            mean, std = mean[index].reshape(shape), std[index].reshape(shape)
        result = np.asarray(array, dtype=np.float64) * std + mean
        return torch.from_numpy(result) if isinstance(values, torch.Tensor) else result  # type: ignore[return-value]

    def to_json(self) -> dict[str, list[float]]:
        return {"mean": self.mean.tolist(), "std": self.std.tolist()}

    @classmethod
    def from_json(cls, obj: Mapping[str, Any]) -> Scaler:
        return cls(obj["mean"], obj["std"])
