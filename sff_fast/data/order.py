"""The order in which an epoch visits its windows."""

from __future__ import annotations

import numpy as np
import torch

from ..errors import ArgumentError

_DOMAIN = 0x7366665F6F726472  # "sff_ordr": keeps these draws apart from every other use of the same seed


def epoch_order(n: int, seed: int, epoch: int) -> torch.Tensor:
    """A permutation of 0 … n-1 that depends on its arguments alone.

    Neither the global random state nor the version of torch matters. One 64-bit Philox word is drawn for each element
    and the words are sorted (stably). Only ``Philox.random_raw`` of NumPy is used, whose stream NumPy guarantees for all
    versions (NEP 19); ``Generator.permutation`` has no such guarantee.

    Args:
        n: Number of windows.
        seed: 0 to 2^64 - 1.
        epoch: Number of the epoch, from 0.

    Returns:
        int64 [n].
    """
    for name, value, high in (("n", n, 2**48), ("seed", seed, 2**64), ("epoch", epoch, 2**64)):
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or not 0 <= value < high:
            raise ArgumentError(f"{name} must be a whole number from 0 to {high - 1}, got {value!r}")
    counter = np.array([0, 0, epoch, n], dtype=np.uint64)
    key = np.array([seed, _DOMAIN], dtype=np.uint64)
    words = np.random.Philox(counter=counter, key=key).random_raw(int(n))
    return torch.from_numpy(np.argsort(words, kind="stable").astype(np.int64))
