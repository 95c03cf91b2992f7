"""``torch.optim``: the fused optimizer in the place of one that exists already."""

from __future__ import annotations

from typing import Any

import torch

from sff_fast.errors import ArgumentError
from sff_fast.optim import FusedAdam, FusedAdamW
from sff_fast.optim.options import TORCH_ONLY

_FUSED = {torch.optim.AdamW: FusedAdamW, torch.optim.Adam: FusedAdam}


def fused(optimizer: torch.optim.Optimizer, **options: Any) -> FusedAdamW:
    """The fused optimizer over the same parameters, groups, settings and moments as one of torch.

    Schedulers and scalers hold on to the optimizer that they were made with: make them after this, or give them the new one.

    Args:
        optimizer: A ``torch.optim.AdamW`` or ``torch.optim.Adam``, new or in the middle of training.
        **options: Options of :class:`sff_fast.FusedAdamW` that torch's lacks, such as ``state_dtype="int8"``.

    Returns:
        A FusedAdamW or FusedAdam; the old optimizer is left as it is, and its moments are copied.

    Raises:
        ArgumentError: It is another optimizer, or an option is one that the groups hold.
    """
    cls = _FUSED.get(type(optimizer))
    if cls is None:
        raise ArgumentError(f"optimizer must be a torch.optim.AdamW or torch.optim.Adam, got {type(optimizer).__name__}")
    decoupled = any(group.get("decoupled_weight_decay") for group in optimizer.param_groups)
    if cls is FusedAdam and decoupled:
        cls = FusedAdamW
    taken = sorted(set(options) & set(optimizer.defaults))
    if taken:
        raise ArgumentError(f"{taken[0]} belongs to the groups of the optimizer that is replaced: set it there")
    groups = []
    for group in optimizer.param_groups:
        own = {key: value for key, value in group.items() if key not in (*TORCH_ONLY, "param_names")}
        names = group.get("param_names")
        groups.append({**own, "params": list(zip(names, own["params"])) if names else list(own["params"])})
    # Keys that a scheduler put into the groups (initial_lr) belong to it and travel with them.
    result = cls(groups, **options)
    if optimizer.state:
        result.load_state_dict(optimizer.state_dict())
    return result
