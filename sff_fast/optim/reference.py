"""The optimizer's step in plain torch: the same formulas as csrc/core/adamw.h, on any device.

Bits equal those of the compiled kernels on the CPU: every operation is correctly rounded in both. On other devices the
square root and the division are torch's own, which may differ in the last place.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from sff_fast.backends import reference as stream

from .quantize import decode, encode
from .task import BLOCK, COMPENSATED, STOCHASTIC

_DITHER_STEP = 0xC13FA9A9
_MASK = 0xFFFFFFFF
_MAX = torch.finfo(torch.float32).max
assert stream.CHUNK % BLOCK == 0


def step(param: torch.Tensor, grad: torch.Tensor, state: Mapping[str, torch.Tensor], task: np.void) -> None:
    """One step of one parameter, in place.

    Args:
        param: The parameter, flat.
        grad: Its gradient, flat, of the same dtype.
        state: Flat state tensors by name: ``exp_avg``, ``exp_avg_sq``, optionally ``max_exp_avg_sq`` and ``compensation``;
            int8 states with ``<name>_scale``.
        task: The entry of the kernel table, see :data:`sff_fast.optim.task.ADAMW_DTYPE`; addresses are not used.
    """
    for begin in range(0, param.numel(), stream.CHUNK):
        part = slice(begin, min(begin + stream.CHUNK, param.numel()))
        _chunk(param, grad, state, task, part)


def sum_of_squares(grad: torch.Tensor) -> float:
    """Sum of squares in float64."""
    return float(grad.double().square().sum())


def _load(state: Mapping[str, torch.Tensor], name: str, part: slice) -> torch.Tensor:
    values = state[name][part]
    if f"{name}_scale" not in state:
        return values.float()
    return decode(values, state[f"{name}_scale"][_blocks(part)], signed=name == "exp_avg")


def _store(state: Mapping[str, torch.Tensor], name: str, part: slice, x: torch.Tensor, dither: torch.Tensor) -> None:
    target, signed = state[name], name == "exp_avg"
    if f"{name}_scale" in state:
        codes, scales = encode(x, signed, dither)
        target[part] = codes
        state[f"{name}_scale"][_blocks(part)] = scales
    elif target.dtype == torch.bfloat16 and not signed:
        target[part] = _dithered_bfloat16(x, dither)
    else:
        target[part] = stream.narrow(x, target.dtype)


def _blocks(part: slice) -> slice:
    return slice(part.start // BLOCK, -(-part.stop // BLOCK))


def _dithered_bfloat16(x: torch.Tensor, dither: torch.Tensor) -> torch.Tensor:
    bits = x.view(torch.int32).long() & _MASK
    half = torch.where(x <= _MAX, bits + (dither >> 16), bits) >> 16
    half = torch.where(torch.isnan(x), 0x7FC0, half)
    return torch.where(half >= 1 << 15, half - (1 << 16), half).to(torch.int16).view(torch.bfloat16)


def _chunk(param: torch.Tensor, grad: torch.Tensor, state: Mapping[str, torch.Tensor], task: np.void, part: slice) -> None:
    index = torch.arange(part.start, part.stop, dtype=torch.int64, device=param.device)
    dither = (index * _DITHER_STEP + int(task["dither"])) & _MASK
    p = param[part].float()
    if task["storing"] == COMPENSATED:
        p = p + state["compensation"][part].float()
    g = grad[part].float() * float(task["grad_scale"])
    if task["l2"] != 0:
        g = stream.fused(float(task["l2"]), p, g)
    else:
        p = p * float(task["decay"])
    m, v = _load(state, "exp_avg", part), _load(state, "exp_avg_sq", part)
    m = stream.fused(float(task["one_minus_beta1"]), g - m, m)
    v = stream.fused(g * float(task["one_minus_beta2"]), g, v * float(task["beta2"]))
    second = v
    if "max_exp_avg_sq" in state:
        largest = _load(state, "max_exp_avg_sq", part)
        second = torch.where(largest > v, largest, v)
        _store(state, "max_exp_avg_sq", part, second, dither)
    root = second.double().sqrt().float()
    denominator = stream.fused(root, float(task["correction"]), float(task["eps"]))
    p = p - (m * float(task["step_size"])) / denominator
    _store(state, "exp_avg", part, m, dither)
    _store(state, "exp_avg_sq", part, v, dither)
    if task["storing"] == STOCHASTIC:
        words = torch.stack(stream.philox(int(task["round_seed"]), int(task["round_stream"]), index >> 3), dim=-1)
        word = words.gather(-1, ((index >> 1) & 3)[:, None])[:, 0]
        param[part] = stream.narrow_stochastic(p, (word >> (16 * (index & 1))) & 0xFFFF, param.dtype)
        return
    param[part] = stream.narrow(p, param.dtype)
    if task["storing"] == COMPENSATED:
        state["compensation"][part] = stream.narrow(p - param[part].float(), param.dtype)
