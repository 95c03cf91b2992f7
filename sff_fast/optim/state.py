"""The state of one parameter: which tensors it has, and how it converts from one precision to another.

A state is a dictionary as ``torch.optim.AdamW`` keeps it: ``step``, ``exp_avg``, ``exp_avg_sq`` and, for amsgrad,
``max_exp_avg_sq``. int8 states hold uint8 codes there and float32 scales under ``<name>_scale``;
compensated parameters have ``compensation``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from sff_fast.backends.reference import narrow
from sff_fast.errors import CheckpointError

from .quantize import decode, encode
from .task import BLOCK

MOMENTS = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.uint8}


def state_shapes(
    elements: int, param_dtype: torch.dtype, state_dtype: str, amsgrad: bool, compensated: bool
) -> dict[str, tuple[int, torch.dtype]]:
    """Flat size and dtype of every tensor of a state, without ``step``."""
    shapes = {}
    for name in MOMENTS if amsgrad else MOMENTS[:2]:
        shapes[name] = (elements, DTYPES[state_dtype])
        if state_dtype == "int8":
            shapes[f"{name}_scale"] = (math.ceil(elements / BLOCK), torch.float32)
    if compensated:
        shapes["compensation"] = (elements, param_dtype)
    return shapes


def as_float32(state: Mapping[str, torch.Tensor], name: str) -> torch.Tensor:
    """A moment of any precision as float32, in its own shape."""
    value = state[name]
    if f"{name}_scale" not in state:
        return value.float()
    return decode(value.reshape(-1), state[f"{name}_scale"], signed=name == "exp_avg").view(value.shape)


def check_state(label: str, shape: torch.Size, state: Mapping[str, torch.Tensor], amsgrad: bool) -> None:
    """Refuse a loaded state that lacks something or belongs to another parameter.

    Raises:
        CheckpointError: Naming the parameter and what is wrong.
    """
    missing = [name for name in ("step", *(MOMENTS if amsgrad else MOMENTS[:2])) if name not in state]
    if missing:
        raise CheckpointError(f"optimizer state of parameter {label}: {', '.join(missing)} is missing: expected AdamW's state")
    elements = math.prod(shape)
    for name in (*MOMENTS, "compensation"):
        if name not in state:
            continue
        if tuple(state[name].shape) != tuple(shape):
            raise CheckpointError(
                f"optimizer state of parameter {label}: {name} has the shape {tuple(state[name].shape)}, the parameter "
                f"{tuple(shape)}: load it into the model that it was saved from"
            )
        scale = state.get(f"{name}_scale")
        if (state[name].dtype == torch.uint8) != (scale is not None):
            raise CheckpointError(f"optimizer state of parameter {label}: {name} of uint8 and {name}_scale belong together")
        if scale is not None and tuple(scale.shape) != (math.ceil(elements / BLOCK),):
            raise CheckpointError(
                f"optimizer state of parameter {label}: {name}_scale has the shape {tuple(scale.shape)}, expected one number "
                f"for {BLOCK} elements"
            )


def assign(target: Mapping[str, torch.Tensor], source: Mapping[str, torch.Tensor]) -> None:
    """Fill a state from another one of any precision; the same precision is copied bit for bit.

    What the source does not have (``compensation``; ``max_exp_avg_sq`` is checked before) becomes zero.
    """
    for name, values in target.items():
        if name.endswith("_scale"):
            continue
        scale = f"{name}_scale"
        if name not in source:
            values.zero_()
        elif scale in target and source[name].dtype == torch.uint8:
            values.copy_(source[name])
            target[scale].copy_(source[scale])
        elif scale in target:
            codes, scales = encode(source[name].detach().float().reshape(-1).to(values.device), signed=name == "exp_avg")
            values.copy_(codes.view(values.shape))
            target[scale].copy_(scales)
        elif source[name].dtype == values.dtype:
            values.copy_(source[name])
        else:
            values.copy_(narrow(as_float32(source, name), values.dtype))


def to_torch(state: Mapping[str, torch.Tensor], param_dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The state as ``torch.optim.AdamW`` would load it: moments of the wider of the state's and the parameter's dtype."""
    result = {"step": state["step"].detach().clone()}
    for name in MOMENTS:
        if name in state:
            kept = torch.float32 if state[name].dtype == torch.uint8 else state[name].dtype
            result[name] = as_float32(state, name).to(torch.promote_types(kept, param_dtype), copy=True)
    return result
