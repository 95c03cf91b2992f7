"""Between whole tensors and the parts of them that processes hold."""

from __future__ import annotations

import torch
from torch import nn

from ..shards import is_sharded, local, pieces


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """All of a tensor, gathered where it is sharded; every process must ask."""
    tensor = tensor.detach()
    return tensor.full_tensor() if is_sharded(tensor) else tensor


def put(target: torch.Tensor, source: torch.Tensor) -> None:
    """Copy into a tensor, or into this process's part of a sharded one; nothing is communicated.

    Args:
        target: Plain or a DTensor.
        source: Of the same shape, plain or a DTensor that is spread as the target is.
    """
    with torch.no_grad():
        if not is_sharded(target):
            target.copy_(source)
        elif is_sharded(source):
            local(target).copy_(local(source))
        else:
            for piece in pieces("", target):
                values = source if piece.region is None else source[tuple(slice(low, high) for low, high in piece.region)]
                piece.tensor.copy_(values.view(piece.tensor.shape))


def gather_into(target: nn.Module | None, model: nn.Module) -> None:
    """Copy a sharded model's weights into a plain twin, one tensor at a time; every process must call.

    Args:
        target: The twin, None in processes that keep none.
        model: The model.
    """
    plain = {} if target is None else {**dict(target.named_parameters()), **dict(target.named_buffers())}
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        values = whole(tensor)
        if target is not None:
            put(plain[name], values)
