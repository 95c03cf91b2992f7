"""A table split, standardised and cut into windows of which patches are hidden."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..errors import ArgumentError
from ..stream import check_seed
from . import validate
from .forecast import ForecastData
from .masks import choose, hide_patches
from .table import Table
from .windows import WindowSet


@dataclass(frozen=True)
class MaskedBatch:
    """Some windows, standardised, and which of their points may be looked at.

    Args:
        values: float32 [B, L, C], the true values; C is 1 when the windows are channel-independent.
        mask: bool [B, L, C], True where a point is observed.
        index: int64 [B], the windows' numbers in their set.
        rate: int64 [B], the number of each window's rate of hidden points.
        channel: int64 [B], the channel of each window when they are channel-independent, else None.
    """

    values: torch.Tensor
    mask: torch.Tensor
    index: torch.Tensor
    rate: torch.Tensor
    channel: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.values)

    def to(self, device: torch.device | str) -> MaskedBatch:
        """The same windows on a device; the numbers of windows, rates and channels stay on the CPU."""
        return MaskedBatch(self.values.to(device), self.mask.to(device), self.index, self.rate, self.channel)


class MaskedWindows:
    """The windows of one part, with masks.

    Args:
        windows: The windows; they have no horizon.
        name: Name of the part.
        hidden: For each rate, how many patches of a window are hidden.
        patch_length: Rows in a patch.
        seed: Key of the masks.
        every_rate: Whether each window comes once with every rate (ordered by rate first), or with one drawn at random.
    """

    def __init__(
        self, windows: WindowSet, name: str, hidden: Sequence[int], patch_length: int, seed: int, every_rate: bool
    ) -> None:
        self.windows = windows
        self.border: tuple[int, int] = windows.border
        self._patch_length = patch_length
        self._hidden = torch.tensor(hidden)
        self._every_rate = every_rate
        self.draw_masks(seed, name)

    def draw_masks(self, seed: int, name: str) -> None:
        """Take the masks from another draw."""
        self._seed, self._name = seed, name

    def __len__(self) -> int:
        return len(self.windows) * (len(self._hidden) if self._every_rate else 1)

    def positions(self, indices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """First row (in the table) and channel of each window; channel is None for windows of all channels."""
        self._check(indices)
        return self.windows.positions(indices % len(self.windows))

    def batch(self, indices: torch.Tensor) -> MaskedBatch:
        """Gather windows.

        Args:
            indices: int64 [B], each from 0 to ``len(self) - 1``, in any order.

        Returns:
            The windows, in new contiguous memory.
        """
        self._check(indices)
        number = indices.to(torch.int64) % len(self.windows)
        if self._every_rate:
            rate = indices.to(torch.int64) // len(self.windows)
        else:
            rate = choose(self._seed, self._name, number, len(self._hidden))
        part = self.windows.batch(number)
        patches = part.context.shape[1] // self._patch_length
        seen = hide_patches(self._seed, self._name, indices.to(torch.int64), self._hidden[rate], patches, part.context.shape[2])
        mask = seen.repeat_interleave(self._patch_length, dim=1)
        return MaskedBatch(part.context, mask, indices.to(torch.int64), rate, part.channel)

    def _check(self, indices: torch.Tensor) -> None:
        if len(indices) and (int(indices.min()) < 0 or int(indices.max()) >= len(self)):
            raise ArgumentError(f"indices must lie from 0 to {len(self) - 1}, got {int(indices.min())} to {int(indices.max())}")


class ImputationData(ForecastData):
    """The train, validation and test windows of a table, patches of which are hidden and to be filled in.

    Windows, split and scaler are those of :class:`ForecastData` without a horizon. In every channel of a window the same
    number of patches is hidden, ``rate * patches`` rounded, never the first one. Masks are drawn from random stream
    version 1, purpose ``mask``: those of validation and test from ``mask_seed``, the same at every evaluation of every
    run; those of training from the run's seed and the epoch, other ones in every epoch.

    Source: the protocol of Liu et al., "Timer", ICML 2024, arXiv:2402.02368, section 4.2 (windows of 192 rows, patches of
    24, rates .125, .25, .375 and .5); its code hides each patch but the first with a probability of the rate instead, so
    that windows differ in how much is hidden.

    Args:
        table: See :func:`read_table`.
        split: As for :class:`ForecastData`.
        context_length: Rows of a window, a multiple of ``patch_length``. Default 192.
        stride: Rows between the starts of neighbouring windows. Default 1.
        channel_independent: Whether a window holds one channel (default) or all of them.
        train_fraction: Share of the train windows to use. Default 1.
        patch_length: Rows in a patch. Default 24.
        mask_rates: Shares of the patches to hide. Training draws one of them for every window, evaluations take every
            window once with each. Default ``(0.25,)``.
        mask_seed: Key of the masks of validation and test. Default 0.

    Raises:
        DataError: As for :class:`ForecastData`.
        ArgumentError: A length, the split, a rate or a fraction is invalid.
    """

    task = "imputation"
    _least_horizon = 0

    def __init__(
        self,
        table: Table,
        split: str | Sequence[float],
        context_length: int = 192,
        stride: int = 1,
        channel_independent: bool = True,
        train_fraction: float = 1.0,
        *,
        patch_length: int = 24,
        mask_rates: Sequence[float] = (0.25,),
        mask_seed: int = 0,
    ) -> None:
        validate.check_positive("context_length", context_length)
        validate.check_positive("patch_length", patch_length)
        if context_length % patch_length or context_length < 2 * patch_length:
            raise ArgumentError(
                f"context_length must be a multiple of patch_length ({patch_length}) and hold two patches or more, "
                f"got {context_length}"
            )
        self.patch_length = patch_length
        self.mask_rates: tuple[float, ...] = _rates(mask_rates, context_length // patch_length)
        self.mask_seed: int = check_seed(mask_seed)
        super().__init__(table, split, context_length, 0, stride, channel_independent, train_fraction)
        hidden = [_hidden(rate, context_length // patch_length) for rate in self.mask_rates]
        self.train: MaskedWindows = MaskedWindows(self.train, "train/0", hidden, patch_length, 0, every_rate=False)
        self.val: MaskedWindows = MaskedWindows(self.val, "val", hidden, patch_length, self.mask_seed, every_rate=True)
        self.test: MaskedWindows = MaskedWindows(self.test, "test", hidden, patch_length, self.mask_seed, every_rate=True)

    def begin_epoch(self, seed: int, epoch: int) -> None:
        """Train on other masks in every epoch.

        Args:
            seed: The run's.
            epoch: Finished epochs.
        """
        self.train.draw_masks(seed, f"train/{epoch}")

    def describe(self) -> dict[str, Any]:
        """As :meth:`ForecastData.describe`, with what is hidden."""
        return {
            **super().describe(),
            "task": self.task,
            "patch_length": self.patch_length,
            "mask_rates": list(self.mask_rates),
            "mask_seed": self.mask_seed,
        }


def _hidden(rate: float, patches: int) -> int:
    return int(rate * patches + 0.5)


def _rates(rates: Sequence[float], patches: int) -> tuple[float, ...]:
    values = tuple(rates) if isinstance(rates, Sequence) and not isinstance(rates, str) else (rates,)
    if not values or len(set(values)) != len(values):
        raise ArgumentError(f"mask_rates must be one or several different numbers, got {rates!r}")
    for rate in values:
        good = isinstance(rate, (int, float)) and not isinstance(rate, bool) and 0 < rate < 1
        if not good or not 1 <= _hidden(rate, patches) <= patches - 1:
            raise ArgumentError(
                f"mask_rates must hide at least one of the {patches} patches of a window and leave the first: from "
                f"{0.5 / patches:.3g} to below {(patches - 0.5) / patches:.3g}, got {rate!r}"
            )
    return tuple(float(rate) for rate in values)
