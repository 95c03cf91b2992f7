"""An optimizer's state in a save, for the same number of processes or another one.

A process that is alone saves its optimizer's state dict as it is. Several save the states as ``torch.optim`` keeps them, by the
name of their parameter and each process its part: these can be cut anywhere. What is read is turned into what the reader has.
int8 states become float32 then. Decoding and encoding a block gives its codes again, so that on the same number of
processes nothing is lost; on another one blocks of 256 elements begin elsewhere, and each is rounded to eight bits anew.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ..distributed.weights import put
from ..optim import FusedAdamW
from ..optim.state import to_torch
from ..shards import is_sharded
from .state import Saved, join_tensors, split_tensors

_SET = "optimizer"


def optimizer_content(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, torch.nn.Parameter], alone: bool
) -> tuple[Any, dict[str, torch.Tensor]]:
    """What a save holds of an optimizer.

    Args:
        optimizer: The optimizer.
        parameters: Name to parameter, in the optimizer's order.
        alone: Whether this process saves alone.

    Returns:
        What JSON holds, and the tensors of the set ``"optimizer"``.
    """
    tensors: dict[str, torch.Tensor] = {}
    if alone:
        return split_tensors(optimizer.state_dict(), tensors), tensors
    state = (optimizer.to_torch_state_dict() if isinstance(optimizer, FusedAdamW) else optimizer.state_dict())["state"]
    for number, name in enumerate(parameters):
        tensors.update((f"{name}/{key}", value) for key, value in state.get(number, {}).items())
    return {"parameters": list(parameters)}, tensors


def restore_optimizer(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, torch.nn.Parameter], saved: Saved, alone: bool
) -> None:
    """Put a save's state into an optimizer that is new.

    Args:
        optimizer: The optimizer.
        parameters: Name to parameter, in the optimizer's order.
        saved: The save; where no optimizer was at work when it was made, nothing is done.
        alone: Whether this process is the only one.
    """
    skeleton = saved.content["optimizer"]
    if skeleton is None:
        return
    if alone and not saved.by_several:
        optimizer.load_state_dict(join_tensors(skeleton, dict(saved.tensors(_SET))))
    else:
        states = _of_several(saved, parameters) if saved.by_several else _of_one(saved, skeleton, parameters)
        numbers = {name: number for number, name in enumerate(parameters)}
        state = {numbers[name]: values for name, values in states.items()}
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    if isinstance(optimizer, FusedAdamW):
        return  # it has copied everything into its own memory
    for parameter, values in optimizer.state.items():
        for name, value in values.items():
            if not isinstance(value, torch.Tensor):
                continue
            # Memory of its own, since what was read may be mapped to the file; and where it belongs to each element
            # laid out as the parameter's, since fused kernels walk both in storage order.
            alike = value.shape == parameter.shape
            values[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value) if alike else value.clone()


def _of_several(saved: Saved, parameters: Mapping[str, torch.nn.Parameter]) -> dict[str, dict[str, torch.Tensor]]:
    """States by parameter of a save by several processes."""
    states: dict[str, dict[str, torch.Tensor]] = {}
    for path, value in saved.tensors(_SET, lambda path: parameters.get(path.rpartition("/")[0])):
        name, _, key = path.rpartition("/")
        states.setdefault(name, {})[key] = value
    return states


def _of_one(saved: Saved, skeleton: Any, parameters: Mapping[str, torch.nn.Parameter]) -> dict[str, dict[str, torch.Tensor]]:
    """States by parameter of a save by one process, each cut as its parameter is."""
    state = join_tensors(skeleton, dict(saved.tensors(_SET)))["state"]
    return {
        name: {key: _spread(value, parameter) for key, value in to_torch(state[number], parameter.dtype).items()}
        for number, (name, parameter) in enumerate(parameters.items())
        if number in state
    }


def _spread(value: torch.Tensor, parameter: torch.nn.Parameter) -> torch.Tensor:
    """This process's part of a state, as a tensor that is spread as the parameter is."""
    if not is_sharded(parameter) or value.shape != parameter.shape:
        return value
    part = torch.zeros_like(parameter, dtype=value.dtype, requires_grad=False)
    put(part, value)
    return part
