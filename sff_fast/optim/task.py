"""The optimizer's kernel table: the layout of ``AdamWTask`` in csrc/core/adamw_task.h."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch

BLOCK = 256
"""Elements of a parameter that share the scales of int8 states."""

PARAM_DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
STATE_TYPES = {"float32": 0, "bfloat16": 1, "int8": 2}
NEAREST, STOCHASTIC, COMPENSATED = 0, 1, 2

_ADDRESSES = ("param", "grad", "compensation", "exp_avg", "exp_avg_sq", "max_exp_avg_sq")
_SCALES = ("exp_avg_scale", "exp_avg_sq_scale", "max_exp_avg_sq_scale")
_COEFFICIENTS = ("grad_scale", "l2", "decay", "beta2", "one_minus_beta1", "one_minus_beta2", "correction", "eps", "step_size")

ADAMW_DTYPE = np.dtype(
    [(name, "<u8") for name in (*_ADDRESSES, *_SCALES)]
    + [("elements", "<i8"), ("round_seed", "<u8"), ("round_stream", "<u8")]
    + [(name, "<i4") for name in ("param_dtype", "state_type", "storing")]
    + [("dither", "<u4")]
    + [(name, "<f4") for name in _COEFFICIENTS]
    + [("reserved", "<u4")]
)

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def set_coefficients(
    table: np.ndarray, count: np.ndarray, options: Mapping[str, object], grad_scale: float, decoupled: bool
) -> None:
    """Set what a step's number and the options decide.

    Args:
        table: Entries of :data:`ADAMW_DTYPE`.
        count: For each the number of its step, from 1 on, float64.
        options: ``lr``, ``betas``, ``eps``, ``weight_decay``, ``maximize``, ``seed``.
        grad_scale: What gradients are multiplied by.
        decoupled: Whether weight decay is AdamW's; else it joins the gradient.

    Source: Kingma & Ba, "Adam", ICLR 2015; the order of operations is that of ``torch.optim``.
    """
    lr, eps, decay = float(options["lr"]), float(options["eps"]), float(options["weight_decay"])
    beta1, beta2 = (float(beta) for beta in options["betas"])
    table["grad_scale"] = -grad_scale if options["maximize"] else grad_scale
    table["l2"] = 0.0 if decoupled else decay
    table["decay"] = 1.0 - lr * decay if decoupled else 1.0
    table["beta2"], table["eps"] = beta2, eps
    table["one_minus_beta1"], table["one_minus_beta2"] = 1.0 - beta1, 1.0 - beta2
    table["correction"] = 1.0 / np.sqrt(1.0 - beta2**count)
    table["step_size"] = lr / (1.0 - beta1**count)
    key = np.uint64(int(options["seed"])) + count.astype(np.uint64) * _GOLDEN
    table["round_seed"], table["dither"] = key, key >> np.uint64(32)


def clipping(total: float, grad_scale: float, max_norm: float) -> tuple[float, np.float32]:
    """Norm and factor of clipping, ``clipping`` of csrc/core/adamw.h.

    Args:
        total: Sum of squares of all gradients.
        grad_scale: What gradients are multiplied by.
        max_norm: The largest norm.

    Returns:
        The norm, and what gradients are multiplied by besides: 1 where the norm is small enough, NaN where it is NaN.
    """
    norm = math.sqrt(total) * grad_scale
    return norm, clip_factor(norm, max_norm)


def clip_factor(norm: float, max_norm: float) -> np.float32:
    """What gradients of a norm are multiplied by: 1 where it is small enough, NaN where it is NaN, as with torch."""
    factor = max_norm / (norm + 1e-6)
    return np.float32(1.0 if factor >= 1.0 else factor)
