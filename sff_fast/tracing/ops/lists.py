"""Operations on lists of tensors (``torch._foreach_mul_``): each is done tensor by tensor."""

from __future__ import annotations

from typing import Any

import torch

from sff_fast.tracing.ops.registry import handles

IN_PLACE = ("add_", "sub_", "mul_", "div_", "neg_", "zero_", "copy_", "clamp_min_", "clamp_max_", "lerp_")


@handles(*(f"_foreach_{name}" for name in IN_PLACE))
def one_by_one(tracer: Any, func: Any, args: tuple, kwargs: dict) -> Any:
    """Call the method of a single tensor for each one of the list."""
    method = getattr(torch.Tensor, func._schema.name.removeprefix("aten::_foreach_"))
    with tracer:
        for i in range(len(args[0])):
            method(*(arg[i] if isinstance(arg, (list, tuple)) else arg for arg in args), **kwargs)
