"""Half-precision parameters in upstream models that compute their own normalisation in float32."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from sff_fast.errors import ArgumentError

_HALF = (torch.bfloat16, torch.float16)


@contextlib.contextmanager
def mixed_precision(model: nn.Module) -> Iterator[None]:
    """Let a model with bfloat16 or float16 parameters take float32 inputs: matrix products in its dtype, the rest in float32.

    The statistics of a window (mean, standard deviation) lose their meaning in eight bits, and upstream code mixes them,
    in float32, with the parameters. torch's autocast is what the upstream trainers use; it leaves out layers of
    normalisation, which take no input of another dtype than their weight. A float32 model is left alone.
    """
    parameter = next(model.parameters())
    if parameter.dtype not in _HALF:
        yield
        return
    norms = [layer for layer in model.modules() if isinstance(layer, (nn.LayerNorm, nn.RMSNorm)) and layer.weight is not None]
    hooks = [layer.register_forward_pre_hook(_as_weight) for layer in norms]
    try:
        # No cache: it holds casts of float32 parameters, of which there are none.
        with torch.autocast(parameter.device.type, parameter.dtype, cache_enabled=False):
            yield
    finally:
        for hook in hooks:
            hook.remove()


def _as_weight(layer: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (inputs[0].to(layer.weight.dtype), *inputs[1:])


def as_input(tensor: Tensor) -> Tensor:
    """Data as such a model takes it: float32."""
    return tensor.to(torch.float32)


def refuse_float64(dtype: torch.dtype | None, variant: str) -> None:
    """Raise one line for a dtype that the upstream code cannot compute in.

    Raises:
        ArgumentError: It is float64.
    """
    if dtype == torch.float64:
        raise ArgumentError(
            f"dtype must be float32, bfloat16 or float16 for {variant}, whose package computes in float32, got float64"
        )
