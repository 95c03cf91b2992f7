"""The optimizer's kernel table: the layout of ``AdamWTask`` in csrc/core/adamw_task.h."""

from __future__ import annotations

import functools
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

OPTIONS_DTYPE = np.dtype(
    [("step", "<u8"), ("lr", "<u8"), ("lr_number", "<f8")]
    + [(name, "<f8") for name in ("beta1", "beta2", "eps", "weight_decay")]
    + [("seed", "<u8"), ("rate_type", "<i4"), ("maximize", "<u4"), ("decoupled", "<u4"), ("reserved", "<u4")]
)
"""Options of a parameter whose steps are counted on its device: the layout of ``AdamWOptions`` in csrc/cuda/adamw_options.h."""

RATE_TYPES = {torch.float32: 1, torch.float64: 2}
"""Of a learning rate that lies on the device, by its dtype; 0 is a number."""

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


@functools.lru_cache(maxsize=1024)
def power(base: float, count: int) -> float:
    """``base ** count`` by squaring: the same bits on every machine, and as csrc/cuda/adamw_options.h has them.

    A library's pow gives bits of its own. Of the result at most (2 * count + 1) * 2**-53 are wrong; of 1 - base ** count, which
    is what counts, 2 / (1 - base) * 2**-53 and the rounding of the difference.
    """
    result, square = 1.0, base
    while count:
        if count & 1:
            result *= square
        count >>= 1
        square *= square
    return result


def set_options(rows: np.ndarray, steps: np.ndarray, options: Mapping[str, object], decoupled: bool) -> None:
    """Set what :func:`set_coefficients` would need, for a device that does it by itself.

    Args:
        rows: Entries of :data:`OPTIONS_DTYPE`.
        steps: Addresses of the numbers of steps so far, float32.
        options: As for :func:`set_coefficients`; a learning rate that is a tensor is read on the device at every step.
        decoupled: Whether weight decay is AdamW's; else it joins the gradient.
    """
    lr = options["lr"]
    rows["step"], rows["eps"], rows["weight_decay"] = steps, float(options["eps"]), float(options["weight_decay"])
    rows["beta1"], rows["beta2"] = (float(beta) for beta in options["betas"])
    rows["seed"], rows["maximize"], rows["decoupled"] = int(options["seed"]), bool(options["maximize"]), decoupled
    if isinstance(lr, torch.Tensor):
        rows["lr"], rows["rate_type"] = lr.data_ptr(), RATE_TYPES[lr.dtype]
    else:
        rows["lr_number"] = float(lr)


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
    counts = [int(n) for n in count.tolist()]
    if len(set(counts)) == 1:  # nearly always: only mixtures of experts and layers that were frozen have several
        counts = counts[:1]
    table["correction"] = [1.0 / math.sqrt(1.0 - power(beta2, n)) for n in counts]
    table["step_size"] = [lr / (1.0 - power(beta1, n)) for n in counts]
    key = np.uint64(int(options["seed"])) + count.astype(np.uint64) * _GOLDEN
    table["round_seed"], table["dither"] = key, key >> np.uint64(32)
