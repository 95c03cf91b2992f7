"""The compiled kernels of the optimizer: where they run, and how a table reaches them."""

from __future__ import annotations

import numpy as np
import torch

from sff_fast.backends import cpu

from . import cuda


def available(device: torch.device) -> bool:
    """Whether compiled kernels run on a device."""
    return (device.type == "cpu" and not cpu.why_absent()) or (device.type == "cuda" and not cuda.why_absent())


def step(table: np.ndarray, device: torch.device) -> None:
    """One step of every parameter of a table, in place.

    Args:
        table: Entries of :data:`sff_fast.optim.task.ADAMW_DTYPE`.
        device: Where all of their tensors lie.
    """
    if device.type == "cuda":
        cuda.step(table, device)
    else:
        cpu._cpu.adamw(table.view(np.uint8), torch.get_num_threads(), cpu.forced_isa())


def captures(device: torch.device) -> bool:
    """Whether steps on a device may be captured in a graph: what ``capturable=True`` needs."""
    return device.type == "cuda" and available(device)


def clips(device: torch.device) -> bool:
    """Whether :func:`clipped_step` runs on a device."""
    return device.type == "cuda"


def clipped_step(table: np.ndarray, device: torch.device, grad_scale: float, max_norm: float) -> torch.Tensor:
    """One step with gradients clipped to a norm; nothing waits for the device.

    Args:
        table: Entries of :data:`sff_fast.optim.task.ADAMW_DTYPE`, all that the norm is of.
        device: The GPU where all of their tensors lie.
        grad_scale: What the table multiplies gradients by, for the norm.
        max_norm: The largest norm.

    Returns:
        The norm, a float64 tensor on the device.
    """
    return cuda.clipped_step(table, device, grad_scale, max_norm)


def sum_of_squares(table: np.ndarray, device: torch.device) -> float:
    """Sum of squares of all gradients of a table, in fp64, the same bits on every device."""
    if device.type == "cuda":
        return cuda.sum_of_squares(table, device)
    return cpu._cpu.sum_of_squares(table.view(np.uint8), torch.get_num_threads(), cpu.forced_isa())
