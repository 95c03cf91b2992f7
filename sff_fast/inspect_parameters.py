"""Which parameters can be written in place, element by element."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from sff_fast.errors import PlanError
from sff_fast.table import DTYPES

_EXACT_OVERLAP_LIMIT = 1 << 24
"""Elements up to which two interleaved parameters are compared address by address."""


def check_parameters(parameters: Mapping[str, torch.Tensor]) -> None:
    """Refuse parameters that cannot be written in place, and distinct ones that share memory.

    Args:
        parameters: Name to parameter.

    Raises:
        PlanError: One line that names the parameter and the reason.
    """
    for name, parameter in parameters.items():
        reason = _why_not(parameter)
        if reason:
            raise PlanError(f"{name!r} cannot be smoothed in place: {reason}")
    _refuse_shared_memory(parameters)


def _why_not(parameter: torch.Tensor) -> str:
    if isinstance(parameter, torch.nn.parameter.UninitializedParameter):
        return "it is uninitialised (a lazy module): run one forward pass first"
    if parameter.is_meta:
        return "it lies on the meta device: materialise the model first (model.to_empty(device=...))"
    if parameter.layout != torch.strided:
        return f"its layout is {parameter.layout}, expected a dense tensor"
    if parameter.is_quantized:
        return "it is quantised: smooth the model before quantising it"
    if parameter.dtype not in DTYPES:
        expected = ", ".join(str(dtype).removeprefix("torch.") for dtype in DTYPES)
        return f"its dtype is {str(parameter.dtype).removeprefix('torch.')}, expected one of {expected}"
    if type(parameter.data) is not torch.Tensor:
        return f"it is a {type(parameter.data).__name__}, expected a plain dense tensor"
    if parameter.is_inference() and not torch.is_inference_mode_enabled():
        return "it is an inference tensor: load the model outside torch.inference_mode()"
    reach = 0
    for stride, size in sorted(zip(parameter.stride(), parameter.shape)):
        if size > 1:
            if stride <= reach:
                strides = tuple(parameter.stride())
                return f"its strides {strides} put several elements at one address: make it contiguous (p.data = p.data.clone())"
            reach += stride * (size - 1)
    return ""


def _extent(parameter: torch.Tensor) -> tuple[int, int]:
    last = sum((n - 1) * s for n, s in zip(parameter.shape, parameter.stride()))
    return parameter.data_ptr(), parameter.data_ptr() + (last + 1) * parameter.element_size()


def _addresses(parameter: torch.Tensor) -> np.ndarray:
    offsets = np.zeros((), dtype=np.int64)
    for n, s in zip(parameter.shape, parameter.stride()):
        offsets = offsets[..., None] + np.arange(n, dtype=np.int64) * (s * parameter.element_size())
    return np.sort(offsets.reshape(-1) + parameter.data_ptr())


def _refuse_shared_memory(parameters: Mapping[str, torch.Tensor]) -> None:
    extents = sorted((p.device.type, p.device.index or 0, *_extent(p), name) for name, p in parameters.items() if p.numel())
    for i, (kind, index, _, end, name) in enumerate(extents):
        for other_kind, other_index, begin, _, other in extents[i + 1 :]:
            if (other_kind, other_index) != (kind, index) or begin >= end:
                break
            if _share(parameters[name], parameters[other]):
                raise PlanError(
                    f"{name!r} and {other!r} are distinct parameters that share memory, each would be smoothed twice: tie them "
                    f"as one nn.Parameter, or give each its own memory"
                )


def _share(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two parameters whose extents meet have an address in common."""
    if a.is_contiguous() and b.is_contiguous():
        return True
    if a.numel() + b.numel() > _EXACT_OVERLAP_LIMIT or a.element_size() != b.element_size():
        return True
    return bool(np.intersect1d(_addresses(a), _addresses(b), assume_unique=True).size)
