"""From and to ``torch.optim``: groups and states of a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from sff_fast.errors import CheckpointError

from .options import STRUCTURE, TORCH_ONLY
from .shards import like
from .state import to_torch


def match_groups(groups: list[dict[str, object]], saved: list[Mapping[str, object]]) -> dict[int, torch.Tensor]:
    """The parameter that each number of a checkpoint stands for.

    Raises:
        CheckpointError: The groups have other sizes.
    """
    sizes = [len(group["params"]) for group in groups]
    saved_sizes = [len(group["params"]) for group in saved]
    if sizes != saved_sizes:
        raise CheckpointError(
            f"the optimizer's groups have {sizes} parameters, the loaded state's {saved_sizes}: build it over the same groups"
        )
    return {number: p for group, saved_group in zip(groups, saved) for number, p in zip(saved_group["params"], group["params"])}


def merged_group(group: dict[str, object], saved: Mapping[str, object]) -> dict[str, object]:
    """A group with the options of a checkpoint, except for how states lie in memory."""
    kept = {name: group[name] for name in ("params", *STRUCTURE)}
    if "param_names" in group:
        kept["param_names"] = group["param_names"]
    loaded = {name: value for name, value in saved.items() if name not in (*STRUCTURE, *TORCH_ONLY)}
    return {**group, **loaded, **kept}


def torch_state_dict(optimizer: torch.optim.Optimizer, peer: type[torch.optim.Optimizer]) -> dict[str, object]:
    """The optimizer's state as ``peer``, a class of torch.optim, would have saved it.

    Args:
        optimizer: FusedAdam or FusedAdamW.
        peer: ``torch.optim.Adam`` or ``torch.optim.AdamW``.

    Returns:
        A state dict with copies, moments in the wider of the state's and the parameter's dtype.
    """
    template = peer([torch.nn.Parameter(torch.zeros(1))]).state_dict()["param_groups"][0]
    groups, state, number = [], {}, 0
    for group in optimizer.param_groups:
        own = {name: value for name, value in group.items() if name not in (*STRUCTURE, "seed", "params")}
        numbers = list(range(number, number + len(group["params"])))
        groups.append({**template, **own, "params": numbers})
        for i, p in zip(numbers, group["params"]):
            if optimizer.state.get(p):
                state[i] = {name: like(value, p) for name, value in to_torch(optimizer.state[p], p.dtype).items()}
        number += len(numbers)
    return {"state": state, "param_groups": groups}
