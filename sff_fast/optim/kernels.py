"""The compiled kernels of the optimizer: where they run, and how a table reaches them."""

from __future__ import annotations

import numpy as np
import torch

from sff_fast.backends import cpu


def available(device: torch.device) -> bool:
    """Whether compiled kernels run on a device."""
    return device.type == "cpu" and not cpu.why_absent()


def step(table: np.ndarray, device: torch.device) -> None:
    """One step of every parameter of a table, in place.

    Args:
        table: Entries of :data:`sff_fast.optim.task.ADAMW_DTYPE`.
        device: Where all of their tensors lie.
    """
    cpu._cpu.adamw(table.view(np.uint8), torch.get_num_threads(), cpu.forced_isa())


def sum_of_squares(table: np.ndarray, device: torch.device) -> float:
    """Sum of squares of all gradients of a table, in fp64."""
    return cpu._cpu.sum_of_squares(table.view(np.uint8), torch.get_num_threads(), cpu.forced_isa())
