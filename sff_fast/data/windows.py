"""Windows of context and horizon, as index arithmetic over one array."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..errors import ArgumentError


@dataclass(frozen=True)
class Batch:
    """Some windows, standardised.

    Args:
        context: float32 [B, context_length, C]; C is 1 when the windows are channel-independent.
        target: float32 [B, prediction_length, C].
        index: int64 [B], the windows' numbers in their set.
        channel: int64 [B], the channel of each window when they are channel-independent, else None.
    """

    context: torch.Tensor
    target: torch.Tensor
    index: torch.Tensor
    channel: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.context)

    def to(self, device: torch.device | str) -> Batch:
        """The same windows on a device; the numbers of windows and channels stay on the CPU."""
        return Batch(self.context.to(device), self.target.to(device), self.index, self.channel)


class WindowSet:
    """The windows of one part of a table.

    Channel-independent windows are ordered by channel first, then by time, as in the Timer code base. No window is
    stored: a batch is gathered from the standardised series, which all parts share.

    Args:
        series: float32, contiguous: [C, T] when channel-independent, else [T, C].
        border: First row and row after the last of the part, its context included.
        context_length: Rows of context.
        prediction_length: Rows of horizon, which follow the context; 0 for windows without one.
        stride: Rows between the starts of neighbouring windows.
        channel_independent: Whether a window holds one channel or all of them.
        subset: Use only this many windows, evenly spaced over the set; default all.
    """

    def __init__(
        self,
        series: torch.Tensor,
        border: tuple[int, int],
        context_length: int,
        prediction_length: int,
        stride: int = 1,
        channel_independent: bool = True,
        subset: int | None = None,
    ) -> None:
        self.context_length = context_length
        self.prediction_length = prediction_length
        self.border = border
        self.stride = stride
        self.channel_independent = channel_independent
        self.n_starts: int = (border[1] - border[0] - context_length - prediction_length) // stride + 1
        self._n_rows = series.shape[1] if channel_independent else series.shape[0]
        self.n_all: int = self.n_starts * (series.shape[0] if channel_independent else 1)
        if self.n_starts < 1 or border[0] < 0 or border[1] > self._n_rows:
            raise ArgumentError(f"rows {border[0]} to {border[1]} of {self._n_rows} hold no window")
        self._n = self.n_all if subset is None else subset
        if not 1 <= self._n <= self.n_all:
            raise ArgumentError(f"subset must be from 1 to {self.n_all} windows, got {subset}")
        # Row i of these views is the piece of the series that begins at i; they share its memory. A start that would run
        # over the end of the series has no row, so a wrong index cannot read outside of it.
        self._width = 1 if channel_independent else series.shape[1]
        flat = series.reshape(-1)
        self._contexts = flat.unfold(0, context_length * self._width, self._width)
        self._targets = flat.unfold(0, prediction_length * self._width, self._width) if prediction_length else None

    def __len__(self) -> int:
        return self._n

    def positions(self, indices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """First context row (in the table) and channel of each window; channel is None for windows of all channels."""
        indices = indices.to(torch.int64)
        if indices.ndim != 1:
            raise ArgumentError(f"indices must be one-dimensional, got shape {list(indices.shape)}")
        if len(indices) and (int(indices.min()) < 0 or int(indices.max()) >= self._n):
            raise ArgumentError(f"indices must lie from 0 to {self._n - 1}, got {int(indices.min())} to {int(indices.max())}")
        if self._n != self.n_all:
            indices = indices * self.n_all // self._n
        channels = indices // self.n_starts if self.channel_independent else None
        return self.border[0] + indices % self.n_starts * self.stride, channels

    def batch(self, indices: torch.Tensor) -> Batch:
        """Gather windows.

        Args:
            indices: int64 [B], each from 0 to ``len(self) - 1``, in any order.

        Returns:
            The windows, in new contiguous memory.
        """
        rows, channels = self.positions(indices)
        begin = rows if channels is None else channels * self._n_rows + rows
        context = self._contexts.index_select(0, begin).view(len(begin), self.context_length, self._width)
        if self._targets is None:
            target = context.new_empty(len(begin), 0, self._width)
        else:
            target = self._targets.index_select(0, begin + self.context_length)
            target = target.view(len(begin), self.prediction_length, self._width)
        return Batch(context, target, indices.to(torch.int64), channels)
