"""The optimizer's kernel table: the layout of ``AdamWTask`` in csrc/core/adamw_task.h."""

from __future__ import annotations

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
