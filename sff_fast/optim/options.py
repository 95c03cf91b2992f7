"""What the options of FusedAdam and FusedAdamW may be."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch

from sff_fast.errors import ArgumentError
from sff_fast.stream import check_seed

from .task import RATE_TYPES, STATE_TYPES

STRUCTURE = ("state_dtype", "stochastic_rounding", "compensation")
"""Options that say how states lie in memory: a loaded checkpoint is converted to them and does not change them."""

TORCH_ONLY = ("foreach", "capturable", "differentiable", "fused", "decoupled_weight_decay")
"""Options of torch.optim.AdamW that choose among its implementations: a loaded checkpoint's are dropped."""


def check_options(group: Mapping[str, object]) -> None:
    """Refuse options of a parameter group that make no sense.

    Raises:
        ArgumentError: Naming the option, what was expected and what came.
    """
    lr, betas, eps, weight_decay = group["lr"], group["betas"], group["eps"], group["weight_decay"]
    if isinstance(lr, torch.Tensor) and lr.numel() != 1:
        raise ArgumentError(f"lr must be a number or a tensor of one element, got one of {lr.numel()} elements")
    if not 0 <= float(lr) < math.inf:
        raise ArgumentError(f"lr must be finite and not negative, got lr={float(lr)}")
    if not isinstance(betas, (tuple, list)) or len(betas) != 2:
        raise ArgumentError(f"betas must be two numbers, got {betas!r}")
    for i, beta in enumerate(betas):
        if not 0 <= float(beta) < 1:
            raise ArgumentError(f"betas must lie in [0, 1), got betas[{i}]={float(beta)}")
    if not 0 <= float(eps) < math.inf:
        raise ArgumentError(f"eps must be finite and not negative, got eps={eps}")
    if not 0 <= float(weight_decay) < math.inf:
        raise ArgumentError(f"weight_decay must be finite and not negative, got weight_decay={weight_decay}")
    if group["state_dtype"] not in STATE_TYPES:
        raise ArgumentError(f"state_dtype must be one of {', '.join(STATE_TYPES)}, got {group['state_dtype']!r}")
    if group["compensation"] not in (None, "kahan"):
        raise ArgumentError(f"compensation must be None or 'kahan', got {group['compensation']!r}")
    if group["compensation"] and group["stochastic_rounding"]:
        raise ArgumentError("compensation='kahan' and stochastic_rounding=True exclude each other: choose one")
    check_seed(group["seed"])


def check_capturable(groups: Sequence[Mapping[str, object]], refused: Mapping[str, bool]) -> bool:
    """Whether the steps of all groups are capturable.

    Args:
        groups: The parameter groups.
        refused: Other options by name, and whether they are on: each needs the host in the middle of a step.

    Raises:
        ArgumentError: Groups differ in it, or it does not go with another option.
    """
    values = {bool(group.get("capturable")) for group in groups}
    if len(values) > 1:
        raise ArgumentError("capturable must be the same in all groups, got both True and False")
    if not values or not values.pop():
        return False
    for name, on in refused.items():
        if on:
            raise ArgumentError(f"capturable=True and {name} exclude each other: the latter needs the host amid a step")
    for group in groups:
        lr = group["lr"]
        if not isinstance(lr, torch.Tensor):
            continue
        devices = {p.device for p in group["params"]}
        if lr.dtype not in RATE_TYPES or devices - {lr.device}:
            raise ArgumentError(
                f"lr with capturable=True must be a number, or a float32 or float64 tensor where the parameters are, got "
                f"{lr.dtype} on {lr.device} for parameters on {', '.join(sorted(map(str, devices)))}"
            )
    return True


CLIPPINGS = ("global", "bucket")
"""What max_norm bounds: the norm of all gradients together, or that of each bucket."""


def check_clipping(max_norm: float | None, clip: str) -> None:
    """Refuse a bad bound of the gradient's norm.

    Raises:
        ArgumentError: Naming the option, what was expected and what came.
    """
    if max_norm is not None and not 0 < float(max_norm) < math.inf:
        raise ArgumentError(f"max_norm must be finite and above 0, or None, got max_norm={max_norm}")
    if clip not in CLIPPINGS:
        raise ArgumentError(f"clip must be one of {', '.join(CLIPPINGS)}, got {clip!r}")
