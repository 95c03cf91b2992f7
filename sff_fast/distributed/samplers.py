"""Which windows each process takes: by number alone, whatever the number of processes."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.utils.data import Sampler

from ..data import epoch_order
from ..errors import ArgumentError


def share_of(indices: torch.Tensor, rank: int, size: int) -> torch.Tensor:
    """One process's part of a batch: neighbours, the first ranks take one more where it does not divide; may be empty."""
    return torch.tensor_split(indices, size)[rank]


class WindowSampler(Sampler[list[int]]):
    """Batches for training, for ``DataLoader(batch_sampler=...)``: this process's part of every batch of the job.

    The batches of an epoch are the same for every number of processes: ``batch_size`` windows in the order of
    :func:`sff_fast.data.epoch_order`, the last one takes what is left. A process whose part of a batch would be empty
    gets the batch's first window, and :meth:`weight` is 0 for it.

    Args:
        windows: Number of windows.
        batch_size: Windows of a batch, over all processes.
        seed: Seed of the order.
        rank: This process.
        size: Number of processes.
    """

    def __init__(self, windows: int, batch_size: int, seed: int = 0, rank: int = 0, size: int = 1) -> None:
        if not 0 <= rank < size:
            raise ArgumentError(f"rank must lie from 0 to {size - 1}, got {rank}")
        if batch_size < 1:
            raise ArgumentError(f"batch_size must be at least 1, got {batch_size}")
        self.windows, self.batch_size, self.seed, self.rank, self.size = windows, batch_size, seed, rank, size
        self.epoch, self.start = 0, 0

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Choose the epoch, and how many of its windows have been seen already (a multiple of the batch size)."""
        self.epoch, self.start = epoch, start

    def batches(self) -> Iterator[torch.Tensor]:
        """The job's batches."""
        yield from epoch_order(self.windows, self.seed, self.epoch)[self.start :].split(self.batch_size)

    def weight(self, batch: int) -> float:
        """What this process's mean loss over part ``batch`` counts in the mean over all processes' losses.

        DDP and FSDP average gradients over processes as if all parts were equally long.
        """
        total = min(self.batch_size, self.windows - self.start - batch * self.batch_size)
        return len(share_of(torch.arange(total), self.rank, self.size)) * self.size / total

    def __iter__(self) -> Iterator[list[int]]:
        for whole in self.batches():
            yield (share_of(whole, self.rank, self.size) if self.rank < len(whole) else whole[:1]).tolist()

    def __len__(self) -> int:
        return -(-(self.windows - self.start) // self.batch_size)


class ShareSampler(Sampler[int]):
    """Windows for evaluation: neighbours, each window in exactly one process, none dropped and none doubled.

    Args:
        windows: Number of windows.
        rank: This process.
        size: Number of processes.
    """

    def __init__(self, windows: int, rank: int = 0, size: int = 1) -> None:
        if not 0 <= rank < size:
            raise ArgumentError(f"rank must lie from 0 to {size - 1}, got {rank}")
        self._indices = share_of(torch.arange(windows), rank, size)

    def __iter__(self) -> Iterator[int]:
        return iter(self._indices.tolist())

    def __len__(self) -> int:
        return len(self._indices)
