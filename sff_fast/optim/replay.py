"""The same random numbers a second time."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

import torch


@contextlib.contextmanager
def replayed_generators(devices: Iterable[torch.device]) -> Iterator[None]:
    """Put torch's generators, of the CPU and of CUDA devices, back to where they were before the block."""
    cuda = sorted(device.index for device in devices if device.type == "cuda")
    with torch.random.fork_rng(devices=cuda, device_type="cuda"):
        yield
