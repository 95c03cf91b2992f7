"""Activation checkpointing: the layers of a model keep only their inputs and compute the rest again in the backward pass.

Dropout is replayed, so that weights and losses have the bits that they would have without.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from ..errors import ArgumentError


def repeated_layers(model: nn.Module) -> list[nn.Module]:
    """The modules of every outermost ``nn.ModuleList`` of at least two modules of one class that have parameters."""
    layers: list[nn.Module] = []

    def search(module: nn.Module) -> None:
        for child in module.children():
            if isinstance(child, nn.ModuleList) and _is_stack(child):
                layers.extend(child)
            else:
                search(child)

    search(model)
    return layers


def _is_stack(modules: nn.ModuleList) -> bool:
    alike = len({type(module) for module in modules}) == 1 and len(modules) > 1
    return alike and all(next(module.parameters(), None) is not None for module in modules)


def _own_switches(model: nn.Module) -> list[nn.Module]:
    """The outermost modules that bring activation checkpointing of their own, as those of transformers do."""
    if getattr(model, "supports_gradient_checkpointing", False) and _switch(model, "enable") is not None:
        return [model]
    return [found for child in model.children() for found in _own_switches(child)]


def _switch(module: nn.Module, which: str) -> Any:
    """The method that enables or disables it: transformers 5 renamed it, and warns of the name that version 4 has."""
    for name in (f"activation_checkpointing_{which}", f"gradient_checkpointing_{which}"):
        if hasattr(module, name):
            return getattr(module, name)
    return None


def can_recompute(adapter: Any) -> bool:
    """Whether a family's model has layers that activation checkpointing can recompute."""
    return bool(_own_switches(adapter.model) or repeated_layers(adapter.model))


def check_recompute(adapter: Any) -> None:
    """Refuse activation checkpointing of a model without repeated layers.

    Raises:
        ArgumentError: Naming the family.
    """
    if not can_recompute(adapter):
        raise ArgumentError(
            f"activation_checkpointing: the model of the family {adapter.family!r} has no repeated layers to recompute: "
            "leave it out, and use a smaller micro_batch"
        )


@contextlib.contextmanager
def recomputing(adapter: Any, enabled: bool) -> Iterator[None]:
    """Activation checkpointing of a model's layers, in train mode, for as long as the block lasts.

    A model of transformers is told to do it its own way, which also switches off what cannot be recomputed (caches).

    Args:
        adapter: The adapter.
        enabled: Whether to do anything.

    Raises:
        ArgumentError: The model has no layers that can be recomputed.

    Source: Chen et al., "Training deep nets with sublinear memory cost", 2016.
    """
    if not enabled:
        yield
        return
    check_recompute(adapter)
    switches = _own_switches(adapter.model)
    layers = [] if switches else repeated_layers(adapter.model)
    for module in switches:
        _switch(module, "enable")({"use_reentrant": False})
    for layer in layers:
        layer.forward = functools.partial(_recomputed, layer, layer.forward)
    try:
        yield
    finally:
        for module in switches:
            _switch(module, "disable")()
        for layer in layers:
            del layer.forward


def _recomputed(layer: nn.Module, forward: Any, *args: Any, **kwargs: Any) -> Any:
    if not (layer.training and torch.is_grad_enabled()):
        return forward(*args, **kwargs)
    return checkpoint(forward, *args, use_reentrant=False, **kwargs)
